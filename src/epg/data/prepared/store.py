"""A prepared set: Arrow shards of encoded images, an index with the place and hash of each, and a manifest.

```
manifest.json       source, options, counts, mean and std, checksums of all that follows; written last
index.npy           one row per image (`INDEX`)
names.bin           names of the images, one after the other
report.jsonl        what could not be used, and why
shards/00000.arrow  columns image {bytes, path}, label and sha256, as the `datasets` library reads them
```

Images are read by place and length out of the memory-mapped shard, and compared with the hash in the index; the Arrow
structures around them are for other programs, so damage to them cannot mislead us.
"""

import hashlib
import json
import mmap
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epg.errors import DataError
from epg.storage.plain_file import open_plain, read_plain

FORMAT_VERSION = 3
MANIFEST, INDEX_FILE, NAMES_FILE, REPORT_FILE = "manifest.json", "index.npy", "names.bin", "report.jsonl"
SHARDS = "shards"
INDEX = np.dtype(
    [
        ("offset", "<u8"),  # of the encoded image in its shard
        ("name_end", "<u8"),  # in names.bin
        ("look", "<u8"),  # difference hash
        ("length", "<u4"),
        ("label", "<i4"),
        ("width", "<u4"),  # of the original
        ("height", "<u4"),
        ("sha256", "u1", 32),
    ]
)
MAX_OPEN_SHARDS = 256
MAX_MANIFEST_BYTES = 2**28


def is_store(folder: Path) -> bool:
    """Whether a folder holds a prepared set, finished or not."""
    # Other programs call files like this too.
    return (folder / SHARDS).is_dir() and ((folder / MANIFEST).is_file() or (folder / "plan.json").is_file())


def file_sha256(path: Path) -> str:
    """Sha256 (hex) of a file."""
    with open_plain(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def seal(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest with its own checksum, by which later changes of any of its values are noticed."""
    body = {key: value for key, value in manifest.items() if key != "checksum"}
    canonical = json.dumps(body, sort_keys=True, ensure_ascii=True).encode()
    return {**body, "checksum": hashlib.sha256(canonical).hexdigest()}


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a finished store. Raises DataError for one that is unfinished, damaged or too new."""
    path = folder / MANIFEST
    if not path.is_file():
        raise DataError(f"{folder}: its preparation is not finished; run the same `epg prepare` again to continue it")
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise ValueError("too large")
        manifest = json.loads(read_plain(path))
        version, sealed = manifest["format_version"], seal(manifest) == manifest
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path} is damaged ({error}); restore it from a copy or prepare again") from error
    if version != FORMAT_VERSION:
        raise DataError(f"{path} has format {version}, but this epg reads {FORMAT_VERSION}; prepare again")
    if not sealed:
        raise DataError(f"{path} was changed since preparation; restore it from a copy or prepare again")
    return dict(manifest)


class Store:
    """The encoded images of a prepared set, by number.

    Raises DataError where manifest or index do not fit together. Picklable; shards are mapped by the process that
    reads them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = read_manifest(folder)
        self.shards = [(str(s["file"]), int(s["rows"])) for s in self.manifest["shards"]]
        self.starts = np.cumsum([0, *(rows for _, rows in self.shards)])
        self.check_file(INDEX_FILE)
        self.index = self._map_index()
        self.maps: OrderedDict[int, mmap.mmap] = OrderedDict()

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "maps": OrderedDict(), "index": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.index = self._map_index()

    def _map_index(self) -> NDArray[np.void]:
        path = self.folder / INDEX_FILE
        try:
            index = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DataError(f"{path} is damaged: {error}; restore it from a copy or prepare again") from error
        if index.dtype != INDEX or index.shape != (len(self),):
            raise DataError(f"{path} does not fit the manifest; restore it from a copy or prepare again")
        return np.asarray(index)

    def is_intact(self, name: str) -> bool:
        """Whether a file of the set has the checksum that the manifest has for it."""
        path = self.folder / name
        shards = {f"{SHARDS}/{shard['file']}": shard["sha256"] for shard in self.manifest["shards"]}
        return path.is_file() and file_sha256(path) == {**self.manifest["files"], **shards}[name]

    def check_file(self, name: str) -> None:
        """Raises DataError for a file that is not intact."""
        if not self.is_intact(name):
            raise DataError(
                f"{self.folder / name} is missing or differs from the manifest; restore it from a copy or prepare again"
            )

    def locate(self, index: int) -> tuple[int, int]:
        """(shard, row in it) of an image."""
        shard = int(np.searchsorted(self.starts, index, side="right")) - 1
        return shard, index - int(self.starts[shard])

    def read(self, index: int, *, check: bool = True) -> bytes:
        """The encoded image; with `check`, compared with its hash. Raises DataError where it is missing or changed."""
        row = self.index[index]
        mapped = self._shard(self.locate(index)[0])
        start = int(row["offset"])
        data = mapped[start : start + int(row["length"])]
        if len(data) != row["length"] or (check and hashlib.sha256(data).digest() != row["sha256"].tobytes()):
            raise DataError(
                f"{self.describe(index)}: differs from what was prepared: the disk or a copy is damaged. Restore the "
                "shard from a copy, or delete the folder and prepare again"
            )
        return data

    def name(self, index: int) -> str:
        """What the image was called in its source."""
        start = int(self.index[index - 1]["name_end"]) if index else 0
        try:
            with (self.folder / NAMES_FILE).open("rb") as stream:
                stream.seek(start)
                return stream.read(int(self.index[index]["name_end"]) - start).decode("utf-8", "backslashreplace")
        except OSError:  # used in messages about damage: must not hide them
            return "?"

    def describe(self, index: int) -> str:
        """Shard, place and name of an image."""
        file = self.shards[self.locate(index)[0]][0]
        return f"{self.folder / SHARDS / file} offset {self.index[index]['offset']} ({self.name(index)})"

    def _shard(self, number: int) -> mmap.mmap:
        mapped = self.maps.get(number)
        if mapped is not None:
            self.maps.move_to_end(number)
            return mapped
        path = self.folder / SHARDS / self.shards[number][0]
        try:
            with path.open("rb") as stream:
                mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read: {error}; restore it from a copy or prepare again") from error
        self.maps[number] = mapped
        if len(self.maps) > MAX_OPEN_SHARDS:  # every map holds a file descriptor
            self.maps.popitem(last=False)[1].close()
        return mapped
