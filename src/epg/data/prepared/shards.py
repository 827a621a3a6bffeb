"""One shard: consecutive images of a source, encoded into an Arrow file, with a part file that says it is complete."""

import base64
import errno
import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from epg.data.prepared.encode import PixelOptions, Record, make_record
from epg.data.prepared.seen import Seen
from epg.data.prepared.store import INDEX, SHARDS, file_sha256, seal
from epg.data.sources.base import Source
from epg.errors import DataError
from epg.storage.files import replacing

if TYPE_CHECKING:
    import pyarrow as pa

PARTS = "parts"
BATCH_ROWS = 64


@dataclass(frozen=True)
class ShardJob:
    """What a worker needs to know."""

    source: Source
    images: int
    """Of each shard but the last."""
    options: PixelOptions
    folder: Path | None = None
    """None: only look at the images, for `epg inspect`."""

    def __len__(self) -> int:
        """How many shards there are."""
        return -(-len(self.source) // self.images)

    def items(self, number: int) -> range:
        """The images of a shard."""
        return range(number * self.images, min((number + 1) * self.images, len(self.source)))

    def __call__(self, number: int, crashed: Mapping[int, str], on_item: Callable[[int], None]) -> dict[str, Any]:
        """Write shard `number` and its part file, each complete or not at all; returns what is in the part file.

        `on_item` hears of each image before it is read. Images in `crashed` are rejected with that reason. Raises
        OSError where the folder cannot be written.
        """
        part = _Part(self.source, self.options)
        records = part.records(self.items(number), crashed, on_item)
        if self.folder is None:
            deque(records, maxlen=0)
            return part.summary([])
        path = self.folder / SHARDS / shard_file(number)
        offsets = write_arrow(path, self.source, records)
        stored = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        if not offsets:
            path.unlink()
        summary = seal({**part.summary(offsets), **stored})
        write_durably(part_file(self.folder, number), json.dumps(summary).encode())
        return summary


def shard_file(number: int) -> str:
    return f"{number:05d}.arrow"


def part_file(folder: Path, number: int) -> Path:
    """What is known of a shard besides its images; written last."""
    return folder / PARTS / f"{number:05d}.json"


class _Part:
    """What is known of the images of a shard besides their bytes."""

    def __init__(self, source: Source, options: PixelOptions) -> None:
        self.source, self.options = source, options
        self.rejected: list[tuple[int, str, str]] = []  # number, name, reason
        self.names: list[str] = []
        self.rows: list[tuple[Any, ...]] = []
        self.sums = np.zeros((2, options.channels), dtype=np.int64)
        self.pixels = self.kept = 0
        self.seen = Seen()

    def records(
        self, items: range, crashed: Mapping[int, str], on_item: Callable[[int], None]
    ) -> Iterator[tuple[int, Record]]:
        """Number and record of each image that can be used."""
        for item in items:
            on_item(item)
            try:
                if item in crashed:
                    raise DataError(crashed[item])
                record = _read_record(self.source, item, self.options)
            except DataError as error:
                self.rejected.append((item, self.source.describe(item), str(error)))
                continue
            self._add(item, record)
            yield item, record

    def _add(self, item: int, record: Record) -> None:
        self.names.append(name := self.source.describe(item))
        self.seen.add(name, record.origin, image_size=self.options.image_size)
        sizes = record.origin.width, record.origin.height
        sha256 = np.frombuffer(record.sha256, np.uint8)
        self.rows.append((0, 0, record.look, len(record.data), int(self.source.labels[item]), *sizes, sha256))
        self.sums += record.sums
        self.pixels += record.pixels
        self.kept += record.kept

    def summary(self, offsets: list[int]) -> dict[str, Any]:
        """As JSON has it; the rows of the index lack where names end, and without `offsets` where images are."""
        index = np.array(self.rows, dtype=INDEX)
        if offsets:
            index["offset"] = offsets
        return {
            "rows": len(self.rows),
            "index": base64.b64encode(index.tobytes()).decode(),
            "names": self.names,
            "rejected": self.rejected,
            "sums": self.sums.tolist(),
            "pixels": self.pixels,
            "kept": self.kept,
            "seen": asdict(self.seen),
        }


def _read_record(source: Source, item: int, options: PixelOptions) -> Record:
    try:
        data = source.read(item)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise  # no fault of this image
        raise DataError(f"it cannot be read: {error.strerror or error}") from error
    return make_record(data, options)


def write_arrow(path: Path, source: Source, records: Iterator[tuple[int, Record]]) -> list[int]:
    """Write the images of a shard, a few at a time; returns where in the file the bytes of each begin."""
    import pyarrow as pa

    schema = arrow_schema(source.class_names)
    with replacing(path, durable=True) as temporary:
        with temporary.open("wb") as stream, pa.ipc.new_file(stream, schema) as writer:
            while batch := list(islice(records, BATCH_ROWS)):
                columns: dict[str, list[Any]] = {
                    "image": [{"bytes": record.data, "path": source.describe(item)} for item, record in batch],
                    "label": [int(source.labels[item]) for item, _ in batch],
                    "sha256": [record.sha256.hex() for _, record in batch],
                }
                arrays = [pa.array(columns[field.name], type=field.type) for field in schema]
                writer.write_batch(pa.record_batch(arrays, schema=schema))
        return image_offsets(temporary)


def arrow_schema(class_names: tuple[str, ...]) -> "pa.Schema":
    """Columns of a shard, with the features that the `datasets` library looks for; no label without classes."""
    import pyarrow as pa

    fields = [pa.field("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))]
    features: dict[str, Any] = {"image": {"_type": "Image"}}
    if class_names:
        fields.append(pa.field("label", pa.int64()))
        features["label"] = {"names": list(class_names), "_type": "ClassLabel"}
    fields.append(pa.field("sha256", pa.string()))
    features["sha256"] = {"dtype": "string", "_type": "Value"}
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": features}})})


def image_offsets(path: Path) -> list[int]:
    """Where in an Arrow file the bytes of each image begin."""
    import pyarrow as pa

    offsets: list[int] = []
    with pa.memory_map(str(path)) as mapped:
        base = mapped.read_buffer(mapped.size()).address
        mapped.seek(0)
        reader = pa.ipc.open_file(mapped)
        for number in range(reader.num_record_batches):
            values = reader.get_batch(number).column("image").field("bytes")
            _, ends, data = values.buffers()
            starts = np.frombuffer(ends, np.int32)[values.offset : values.offset + len(values)]
            offsets += (starts.astype(np.int64) + (data.address - base)).tolist()
    return offsets


def write_durably(path: Path, data: bytes) -> None:
    """A file that is there completely or not at all, also after a power cut."""
    with replacing(path, durable=True) as temporary:
        temporary.write_bytes(data)
