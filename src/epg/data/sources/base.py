"""A source: encoded images by number, with names and labels, that several processes can read."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from epg.data.sources.names import Names, pick
from epg.errors import DataError

MAX_FILE_BYTES = 2**27  # one encoded image; whatever holds more is no photograph
MAX_MEMBERS = 5_000_000  # of an archive; listing takes 2 seconds and 100 MB per million
LabelChoice = Literal["auto", "folder", "column", "none"]


@dataclass(frozen=True)
class SourceOptions:
    """How to read a source: which split and columns, and where its labels are."""

    split: str = "train"
    labels: LabelChoice = "auto"
    image_column: str | None = None
    label_column: str | None = None


@dataclass(frozen=True)
class Rejected:
    """Something that looked like an image and cannot be used."""

    name: str
    reason: str


@dataclass(frozen=True)
class Found:
    """What listing a source brings to light: images with their sizes in bytes (N,), and what cannot be used."""

    names: Names
    sizes: NDArray[np.int64]
    rejected: Sequence[Rejected] = ()

    @classmethod
    def rows(cls, names: Sequence[bytes]) -> "Found":
        """Rows of a table, whose sizes are not known before they are read."""
        return cls(Names.of(names), np.full(len(names), -1, dtype=np.int64))

    def take(self, chosen: NDArray[np.int64]) -> "Found":
        return Found(self.names.take(chosen), pick(self.sizes, chosen), self.rejected)


@dataclass
class Listing:
    """What a walk through a source has found so far."""

    names: list[bytes] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)

    def add(self, name: bytes, size: int) -> None:
        self.names.append(name)
        self.sizes.append(size)

    def reject(self, name: bytes, reason: str) -> None:
        self.rejected.append(Rejected(readable(name), reason))

    def found(self) -> Found:
        """Everything, in the order of the names as bytes."""
        order = np.array(sorted(range(len(self.names)), key=self.names.__getitem__), dtype=np.int64)
        return Found(Names.of(self.names), np.array(self.sizes, dtype=np.int64), self.rejected).take(order)


class Source(ABC):
    """Encoded images by number. Picklable; files are opened by the process that reads them.

    Args:
        kind: what it is, for the manifest.
        name: what to call it there; no absolute path, no credentials.
        labels: (N,) class of each image, all -1 where there are none.
    """

    def __init__(
        self,
        kind: str,
        name: str,
        found: Found,
        labels: NDArray[np.int64],
        class_names: tuple[str, ...],
    ) -> None:
        assert len(found.names) == len(labels)
        self.kind = kind
        self.name = name
        self.names = found.names
        self.sizes = found.sizes
        self.labels = labels.astype(np.int64, copy=False)
        self.class_names = class_names
        self.rejected = tuple(found.rejected)

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def read(self, index: int) -> bytes:
        """The encoded image. Raises DataError or OSError for one that cannot be read."""

    def describe(self, index: int) -> str:
        """The name of an image, printable."""
        return readable(self.names[index])

    def digest(self) -> str:
        """Sha256 (hex) of names, sizes, labels and classes: another listing is another digest."""
        digest = hashlib.sha256(self.kind.encode())
        for part in self.names.parts():
            digest.update(b"".join(part))
        lengths = self.names.ends - self.names.starts
        for data in (lengths, self.sizes, self.labels, "\n".join(self.class_names).encode()):
            packed = data if isinstance(data, bytes) else data.tobytes()
            digest.update(len(packed).to_bytes(8, "little") + packed)
        return digest.hexdigest()


def readable(name: bytes) -> str:
    """A file name of any bytes as printable text that still tells all names apart."""
    text = name.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def check_size(size: int) -> None:
    """Raises DataError for an encoded image that is empty or larger than `MAX_FILE_BYTES`."""
    if size == 0:
        raise DataError("it is empty (0 bytes)")
    if size > MAX_FILE_BYTES:
        raise DataError(f"its {size} bytes are more than the limit of {MAX_FILE_BYTES} for one image")


def check_members(count: int, name: str) -> None:
    """Raises DataError for an archive of more than `MAX_MEMBERS`."""
    if count > MAX_MEMBERS:
        raise DataError(
            f"{name}: more than {MAX_MEMBERS} members. Divide it into several archives and prepare each, or unpack it "
            "and prepare the folder"
        )


def labels_of(values: Sequence[object]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Labels (N,) and class names of a column: whole numbers from 0 are classes as they are, anything else is sorted.

    Raises DataError for a missing value.
    """
    if any(value is None or value == "" for value in values):
        raise DataError("some rows have no label; fill or remove them, or pass --labels none")
    texts = [str(int(v)) if isinstance(v, (bool, np.bool_)) else str(v) for v in values]
    if all(text.isascii() and text.isdecimal() and len(text) < 10 for text in texts):
        labels = np.array([int(text) for text in texts], dtype=np.int64)
        if labels.size and labels.max() < max(10_000, 2 * len(labels)):
            return labels, tuple(str(k) for k in range(int(labels.max()) + 1))
    names, inverse = np.unique(np.array(texts, dtype=object), return_inverse=True)
    return inverse.astype(np.int64).reshape(-1), tuple(str(name) for name in names)
