"""A source: encoded images by number, with names and labels, that several processes can read."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from epg.data.sources.names import Names
from epg.errors import DataError

IN_MEMORY = "(in memory)"
"""What a configuration records as the source of images that a program had in memory, see `epg.data.sources.memory`."""
MAX_FILE_BYTES = 2**27  # one encoded image; whatever holds more is no photograph
# A data set of at most so much is hashed completely when it is opened, of a larger one runs of neighbours.
WHOLE_BYTES, WHOLE_IMAGES = 2**30, 250_000
RUNS, RUN = 64, 64
KINDS_SHOWN = 12
LFS = b"version https://git-lfs"
LabelChoice = Literal["auto", "folder", "column", "none"]
Labelled = tuple[NDArray[np.int64], tuple[str, ...]]


@dataclass(frozen=True)
class SourceOptions:
    """How to read a source: which split and columns, and where its labels are."""

    split: str = "train"
    labels: LabelChoice = "auto"
    image_column: str | None = None
    label_column: str | None = None
    label_file: str | None = None
    prefix: str = "--"
    """Of the flags that messages name: `--data.` in training."""

    def flag(self, name: str, value: object = "") -> str:
        """A flag as the user writes it."""
        return f"{self.prefix}{name} {value}".rstrip()

    @property
    def by_column(self) -> bool:
        """Whether labels may come from a column, an array or a list."""
        return self.labels in ("auto", "column")

    def recorded(self) -> dict[str, Any]:
        """What the images and labels depend on."""
        return {key: value for key, value in asdict(self).items() if key != "prefix"}


@dataclass(frozen=True)
class Rejected:
    """Something that looked like an image and cannot be used."""

    name: str
    reason: str


@dataclass(frozen=True)
class Overview:
    """What listing a source brought to light besides its images, for people to read."""

    rule: str
    """Where images and labels come from: the split, and the folders, column or file that names classes."""
    unread: Sequence[tuple[str, int]] = ()
    """Kinds of files that were there and not read, and how many."""
    notes: Sequence[str] = ()
    """Whatever else a person should know before training on it."""

    def lines(self) -> list[str]:
        """For a terminal or a log file."""
        shown = [f"{count} x {kind}" if count > 1 else kind for kind, count in self.unread[:KINDS_SHOWN]]
        more = sum(count for _, count in self.unread[KINDS_SHOWN:])
        kinds = ", ".join(shown + ([f"{more} others"] if more else []))
        return [self.rule, *([f"not read: {kinds}"] if kinds else []), *(f"note: {note}" for note in self.notes)]


@dataclass(frozen=True)
class Images:
    """The images of a source: names and sizes in bytes (N,; -1 unknown), labels (N,; -1 none), and what was seen."""

    names: Names
    sizes: NDArray[np.int64]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    overview: Overview
    rejected: Sequence[Rejected] = ()
    numbers: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    """Which files of a folder or archive they are (N,)."""
    prefix: bytes = b""
    """What comes before all names in the folder or archive."""


class Source(ABC):
    """Encoded images by number. Picklable; files are opened by the process that reads them.

    Args:
        kind: what it is, for the manifest.
        name: what to call it there; no absolute path, no credentials.
    """

    streamed = False
    """Far away, so that neighbours are read together: training shuffles it only approximately."""
    where = ""
    """What comes before the name of an image to find it: a folder, or the name of the source."""

    def __init__(self, kind: str, name: str, images: Images) -> None:
        assert len(images.names) == len(images.labels)
        self.kind = kind
        self.name = name
        self.names = images.names
        self.sizes = images.sizes
        self.labels = images.labels.astype(np.int64, copy=False)
        self.class_names = images.class_names
        self.overview = images.overview
        self.rejected = tuple(images.rejected)

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def read(self, index: int) -> bytes:
        """The encoded image. Raises DataError or OSError for one that cannot be read."""

    def describe(self, index: int) -> str:
        """The name of an image, printable."""
        return readable(self.names[index])

    def locate(self, index: int) -> str:
        """Where an image is, for messages: a path, or `photos.zip: cat/1.png`."""
        return f"{self.where or f'{self.name}: '}{self.describe(index)}"

    def at_random(self) -> "Source":
        """This source, or a copy that is read in any order at little cost. Raises UserError where there is none."""
        return self

    def identity(self) -> tuple[str, Iterator[bytes]]:
        """What tells these images and labels from others, whatever container, place and time: a kind and its parts.

        Labels, and the content of every image; of more than `WHOLE_IMAGES` or `WHOLE_BYTES` the names and sizes of all
        and the content of `RUNS` runs of `RUN` neighbours. What cannot be read counts as its message.
        """
        return "images", self._identity()

    def _identity(self) -> Iterator[bytes]:
        yield np.ascontiguousarray(self.labels, dtype="<i8").tobytes()
        if self.streamed:
            yield self._listing()
            return
        if len(self) <= WHOLE_IMAGES and self.total_bytes() <= WHOLE_BYTES:
            chosen = np.arange(len(self))
        else:
            yield self._listing()
            starts = np.linspace(0, max(0, len(self) - RUN), RUNS).astype(np.int64)
            chosen = np.unique(starts[:, None] + np.arange(min(RUN, len(self))))
        digest = hashlib.sha256()
        for index in chosen.tolist():
            try:
                data = self.read(index)
            except (DataError, OSError) as error:
                data = type(error).__name__.encode()
            digest.update(hashlib.sha256(data).digest())
        yield digest.digest()

    def total_bytes(self) -> int:
        """About what reading all images reads."""
        return int(self.sizes.sum())

    def _listing(self) -> bytes:
        digest = hashlib.sha256(np.ascontiguousarray(self.sizes, dtype="<i8").tobytes())
        for part in self.names.parts():
            digest.update(b"".join(len(name).to_bytes(4, "little") + name for name in part))
        return digest.digest()

    def digest(self) -> str:
        """Sha256 (hex) of kind, classes, labels and content: what a preparation of this source depends on."""
        kind, parts = self.identity()
        return digest_of(kind, (*self.class_names, *parts, self._listing()))


def digest_of(header: str, parts: Iterable[str | bytes]) -> str:
    """Sha256 (hex) of several things, each with its length."""
    digest = hashlib.sha256(header.encode())
    for part in parts:
        data = part.encode(errors="surrogateescape") if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def readable(name: bytes) -> str:
    """A file name of any bytes as printable text that still tells all names apart."""
    text = name.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def check_size(size: int) -> None:
    """Raises DataError for an encoded image that is empty or larger than `MAX_FILE_BYTES`."""
    if size == 0:
        raise DataError("it is empty (0 bytes)")
    if size > MAX_FILE_BYTES:
        raise DataError(f"its {size} bytes are more than the limit of {MAX_FILE_BYTES} for one image")


def checked(data: bytes) -> bytes:
    """The bytes of one image. Raises DataError where they are empty, too many, or stand for a file elsewhere."""
    check_size(len(data))
    refuse_pointer(data[:100])
    return data


def refuse_pointer(start: bytes) -> None:
    """Raises DataError for the file that Git leaves in the place of a large one."""
    if start.startswith(LFS):
        raise DataError("it is a Git LFS pointer, not the file itself: run `git lfs pull` where it was cloned")
