"""Zip and tar archives, read member by member: nothing is ever extracted, no member name ever used as a path."""

import bz2
import gzip
import io
import lzma
import os
import re
import zlib
from array import array
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray

from epg.data.sources.base import MAX_FILE_BYTES, MAX_MEMBERS, Found, Source, SourceOptions, check_members, check_size
from epg.data.sources.layout import (
    METADATA,
    arrange,
    has_image_suffix,
    is_hidden,
    is_image,
    is_unsafe,
    require_images,
)
from epg.data.sources.tar import tar_members
from epg.data.sources.zip import METHODS, problem, read_entry, zip_entries
from epg.errors import DataError

ZIP_SUFFIXES = (".zip",)
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
ARCHIVE_SUFFIXES = ZIP_SUFFIXES + TAR_SUFFIXES
MAX_RATIO = 100  # of a compressed tar: images, compressed already, are far below
RATIO_START = 2**26

Open = Callable[[], BinaryIO]  # opens the archive; picklable
T = TypeVar("T")


class ZipSource(Source):
    """The images of a zip archive, in the order of its directory. Raises DataError for a damaged one."""

    def __init__(self, open_file: Open, name: str, options: SourceOptions) -> None:
        self.open_file = open_file
        self.stream: BinaryIO | None = None
        with open_file() as stream:
            names, entries = zip_entries(stream, name)
        usable = np.isin(entries["method"], METHODS) & (entries["flags"] & 1 == 0)
        usable &= np.maximum(entries["size"], entries["compressed"]) <= MAX_FILE_BYTES
        problems = {int(i): problem(entries[i]) or "" for i in np.flatnonzero(~usable)}
        found, numbers, extras = _choose(names, entries["size"], problems)
        del names
        self.entries = entries
        read_extra = lambda member: self.read_member(entries[extras[member]]) if member in extras else None  # noqa: E731
        found, chosen, labels = arrange(found, read_extra, options, name, archive=True)
        require_images(found, name)
        super().__init__("zip", name, found, *labels)
        self.entries = entries[numbers[chosen]]

    def read(self, index: int) -> bytes:
        return self.read_member(self.entries[index])

    def read_member(self, entry: np.void) -> bytes:
        if self.stream is None:
            self.stream = self.open_file()
        return read_entry(self.stream, entry)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "stream": None}


class TarSource(Source):
    """The images of a tar archive, plain or compressed, in their order in it.

    A compressed one has no random access: reading goes forward cheaply, and back to the start only when it must.
    """

    def __init__(self, open_file: Open, name: str, options: SourceOptions, packed_size: int) -> None:
        self.open_file = open_file
        self.stream: BinaryIO | None = None
        self.packed_size = packed_size
        names, places, problems = list[bytes](), array("q"), dict[int, str]()
        with open_file() as raw:
            for member, (offset, size, reason) in tar_members(decompressed(raw, name, packed_size), name):
                if reason:
                    problems[len(names)] = reason
                names.append(member)
                places.extend((offset, size))
                if len(names) > MAX_MEMBERS:
                    check_members(len(names), name)
        table = np.array(places, dtype=np.int64).reshape(-1, 2)
        found, numbers, extras = _choose(names, table[:, 1], problems)
        del names, places
        read_extra = lambda member: self._read(*map(int, table[extras[member]])) if member in extras else None  # noqa: E731
        self.name = name
        found, chosen, labels = arrange(found, read_extra, options, name, archive=True)
        require_images(found, name)
        super().__init__("tar", name, found, *labels)
        self.places = table[numbers[chosen]]

    def read(self, index: int) -> bytes:
        return self._read(*(int(value) for value in self.places[index]))

    def _read(self, offset: int, size: int) -> bytes:
        check_size(size)
        if self.stream is None:
            self.stream = decompressed(self.open_file(), self.name, self.packed_size)
        self.stream.seek(offset)
        data = self.stream.read(size)
        if len(data) < size:
            raise DataError("the archive ends within this image")
        return data

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "stream": None}


def _choose(
    names: list[bytes], sizes: NDArray[np.integer], problems: Mapping[int, str]
) -> tuple[Found, NDArray[np.int64], dict[bytes, int]]:
    """The images to use, which members they are, and the metadata files by name.

    Hidden members are left out; of several with one name the last counts, as unpacking would leave it; what looks like
    an image and cannot be used is rejected.
    """
    usable = (i for i, name in enumerate(names) if has_image_suffix(name) or name.endswith(METADATA))
    members = np.fromiter(usable, np.int64)
    names = [names[i].removeprefix(b"./") for i in members]
    last = {name: k for k, name in enumerate(names)} if len(set(names)) < len(names) else {}
    found, extras, dropped = Found(), dict[bytes, int](), set[int]()
    closer = _unusual(names).union(np.flatnonzero(np.isin(members, list(problems))).tolist())
    closer.update(k for k, name in enumerate(names if last else ()) if last[name] != k)
    for k in sorted(closer):
        name, reason = names[k], problems.get(int(members[k]))
        if last.get(name, k) != k:
            reason = "a later member of the archive has the same name and is used instead"
        elif name.rpartition(b"/")[2] in METADATA and not reason:
            extras[name] = int(members[k])
        elif is_unsafe(name):
            reason = "its name points outside the archive"
        elif not reason and is_image(name):
            continue
        dropped.add(k)
        if reason and not is_hidden(name):
            found.reject(name, reason)
    kept = np.delete(np.arange(len(names)), sorted(dropped))
    found.names = [names[k] for k in kept] if dropped else names
    found.sizes = sizes[members[kept]].tolist()
    return found, members[kept], extras


def _unusual(names: list[bytes]) -> set[int]:
    """Which names want a closer look. Thousands of ordinary ones are passed at once."""
    signs = (b"/.", b"//", b"\\", b":/", b"\0", b"__MACOSX", *METADATA)
    search = re.compile(rb"^[./]|/[./]|\\|:/|\0|__MACOSX|metadata\.(csv|jsonl)$").search
    found = set[int]()
    for first in range(0, len(names), 2**14):
        part = names[first : first + 2**14]
        blob = b"/" + b"\n/".join(part)
        if any(sign in blob for sign in signs):
            found.update(k for k, name in enumerate(part, first) if search(name))
    return found


def decompressed(stream: BinaryIO, name: str, packed_size: int) -> BinaryIO:
    """A tar stream, decompressed where it must be. Raises DataError once it grows to `MAX_RATIO` times its size."""
    lower = name.lower()
    if lower.endswith(".tar"):
        return stream
    inner: Any
    if lower.endswith("bz2"):
        inner = bz2.BZ2File(stream)
    elif lower.endswith("xz"):
        inner = lzma.LZMAFile(stream)  # noqa: SIM115
    else:
        inner = gzip.GzipFile(fileobj=stream, mode="rb")
    return io.BufferedReader(_Bounded(inner, name, max(RATIO_START, MAX_RATIO * packed_size)), 2**20)


class _Bounded(io.RawIOBase):
    """A decompressing stream that refuses to grow without end, and names its archive when it is damaged."""

    def __init__(self, inner: Any, name: str, limit: int) -> None:
        self.inner, self.name, self.limit = inner, name, limit

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return int(self.inner.tell())

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def]
        data = self._guard(lambda: self.inner.read(len(buffer)))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence != os.SEEK_SET:
            raise io.UnsupportedOperation("only absolute positions")
        if offset < self.inner.tell():
            return self._guard(lambda: self.inner.seek(offset))
        while self.inner.tell() < offset:  # in pieces, so that the limit is checked on the way
            if not self._guard(lambda: self.inner.read(min(2**20, offset - self.inner.tell()))):
                break
        return int(self.inner.tell())

    def _guard(self, action: Callable[[], T]) -> T:
        if self.inner.tell() > self.limit:
            raise DataError(f"{self.name} unpacks to more than {MAX_RATIO} times its size: no archive of images does")
        try:
            return action()
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise DataError(f"{self.name} is damaged: {error}") from error
