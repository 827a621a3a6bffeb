"""One shard: consecutive images of a source, encoded into an Arrow file, with a part file that says it is complete."""

import errno
import io
import json
import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from epg.data.encode import PixelOptions, Record, make_record
from epg.data.seen import Seen
from epg.data.sources.base import Source
from epg.data.store import INDEX, SHARDS, file_sha256
from epg.errors import DataError
from epg.files import hidden, replacing, sync_folder

if TYPE_CHECKING:
    import pyarrow as pa

PARTS = "parts"
BATCH_ROWS = 64


@dataclass(frozen=True)
class ShardJob:
    """What a worker needs to know."""

    folder: Path
    items_per_shard: int
    options: PixelOptions
    keep_images: bool = True
    """False: only look at the images, for `epg inspect`."""


def shard_file(number: int) -> str:
    return f"{number:05d}.arrow"


def part_files(folder: Path, number: int) -> tuple[Path, Path]:
    """The part files of a shard: index rows, and everything else. The second is written last."""
    return folder / PARTS / f"{number:05d}.npy", folder / PARTS / f"{number:05d}.json"


def build_shard(
    source: Source,
    job: ShardJob,
    number: int,
    crashed: Mapping[int, str],
    on_item: Callable[[int], None],
) -> None:
    """Write shard `number` and its part files, each complete or not at all.

    `on_item` hears of each image before it is read. Images in `crashed` are rejected with that reason. Raises OSError
    where the folder cannot be written.
    """
    items = range(number * job.items_per_shard, min((number + 1) * job.items_per_shard, len(source)))
    part = _Part(source, job.options)
    path = job.folder / SHARDS / shard_file(number)
    with _ArrowShard(path, source) if job.keep_images else nullcontext() as arrow:
        for item in items:
            on_item(item)
            try:
                if item in crashed:
                    raise DataError(crashed[item])
                record = _read_record(source, item, job.options)
            except DataError as error:
                part.rejected.append((source.describe(item), str(error)))
                continue
            part.add(item, record)
            if arrow:
                arrow.add(item, record)
    stored = bool(arrow and part.rows)
    index = part.index(arrow.offsets if arrow else [])
    first, last = part_files(job.folder, number)
    stream = io.BytesIO()
    np.save(stream, index, allow_pickle=False)
    write_durably(first, stream.getvalue())
    files = {
        "bytes": path.stat().st_size if stored else 0,
        "sha256": file_sha256(path) if stored else None,
        "index_sha256": file_sha256(first),
    }
    write_durably(last, json.dumps({**part.summary(), **files}).encode())


def _read_record(source: Source, item: int, options: PixelOptions) -> Record:
    try:
        data = source.read(item)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise  # no fault of this image
        raise DataError(f"it cannot be read: {error.strerror or error}") from error
    return make_record(data, options)


class _Part:
    """What is known of the images of a shard besides their bytes."""

    def __init__(self, source: Source, options: PixelOptions) -> None:
        self.source, self.options = source, options
        self.rejected: list[tuple[str, str]] = []
        self.names: list[str] = []
        self.rows: list[tuple[Any, ...]] = []
        self.sums = np.zeros((2, options.channels), dtype=np.int64)
        self.pixels = self.kept = 0
        self.seen = Seen()

    def add(self, item: int, record: Record) -> None:
        self.names.append(name := self.source.describe(item))
        self.seen.add(name, record.origin, image_size=self.options.image_size)
        label, sha256 = int(self.source.labels[item]), np.frombuffer(record.sha256, np.uint8)
        self.rows.append(
            (0, 0, record.look, len(record.data), label, record.origin.width, record.origin.height, sha256)
        )
        self.sums += record.sums
        self.pixels += record.pixels
        self.kept += record.kept

    def index(self, offsets: list[int]) -> NDArray[np.void]:
        """Rows of the index, whose `name_end` counts within this shard."""
        index = np.array(self.rows, dtype=INDEX)
        if self.rows:
            index["name_end"] = np.cumsum([len(name.encode()) for name in self.names])
            index["offset"] = offsets or 0
        return index

    def summary(self) -> dict[str, Any]:
        return {
            "rows": len(self.rows),
            "names": self.names,
            "rejected": self.rejected,
            "sums": self.sums.tolist(),
            "pixels": self.pixels,
            "kept": self.kept,
            "seen": asdict(self.seen),
        }


class _ArrowShard:
    """Writes the Arrow file of a shard a batch at a time; it appears under its name when it is complete."""

    def __init__(self, path: Path, source: Source) -> None:
        self.path = path
        self.source = source
        self.schema = arrow_schema(source.class_names)
        self.temporary = hidden(path, "tmp")
        self.pending: list[tuple[int, Record]] = []
        self.offsets: list[int] = []

    def __enter__(self) -> "_ArrowShard":
        import pyarrow as pa

        self.stream = self.temporary.open("wb")
        self.writer = pa.ipc.new_file(self.stream, self.schema)
        return self

    def add(self, item: int, record: Record) -> None:
        self.pending.append((item, record))
        if len(self.pending) == BATCH_ROWS:
            self._flush()

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: object) -> None:
        try:
            with self.stream:
                if kind is None:
                    self._flush()
                    self.writer.close()
                    self.stream.flush()
                    os.fsync(self.stream.fileno())
            if kind is None:
                self.offsets = image_offsets(self.temporary)
                if self.offsets:
                    os.replace(self.temporary, self.path)
                    sync_folder(self.path.parent)
        finally:
            self.temporary.unlink(missing_ok=True)

    def _flush(self) -> None:
        import pyarrow as pa

        if not self.pending:
            return
        items = [item for item, _ in self.pending]
        columns: dict[str, list[Any]] = {
            "image": [{"bytes": r.data, "path": self.source.describe(i)} for i, r in self.pending],
            "label": [int(self.source.labels[item]) for item in items],
            "sha256": [r.sha256.hex() for _, r in self.pending],
        }
        arrays = [pa.array(columns[field.name], type=field.type) for field in self.schema]
        self.writer.write_batch(pa.record_batch(arrays, schema=self.schema))
        self.pending = []


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
