"""Zip and tar archives, read member by member: nothing is ever extracted, no member name ever used as a path."""

import bz2
import gzip
import io
import lzma
import os
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, TypeVar

import numpy as np

from epg.data.sources.base import Found, Source, SourceOptions, check_size
from epg.data.sources.layout import METADATA, arrange, is_hidden, is_image, is_unsafe, require_images
from epg.data.sources.tar import tar_members
from epg.data.sources.zip import ZipEntry, zip_entries
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
        found, entries, extras = Found(), [], {}
        with open_file() as stream:
            for member, entry in _last_of_each(zip_entries(stream, name), found):
                reason = entry.problem()
                if member in extras or member.split(b"/")[-1] in METADATA:
                    extras[member] = entry
                elif _is_candidate(member, found) and not reason:
                    found.add(member, entry.size)
                    entries.append((entry.offset, entry.compressed, entry.size, entry.method, entry.crc))
                elif reason and is_image(member):
                    found.reject(member, reason)
        read_extra = lambda member: self._read(extras[member]) if member in extras else None  # noqa: E731
        found, chosen, labels = arrange(found, read_extra, options, name, archive=True)
        require_images(found, name)
        super().__init__("zip", name, found, *labels)
        self.entries = np.array(entries, dtype=np.int64).reshape(-1, 5)[chosen]

    def read(self, index: int) -> bytes:
        offset, compressed, size, method, crc = (int(value) for value in self.entries[index])
        return self._read(ZipEntry(offset, compressed, size, method, crc, 0))

    def _read(self, entry: ZipEntry) -> bytes:
        if self.stream is None:
            self.stream = self.open_file()
        return entry.read(self.stream)

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
        found, places, extras = Found(), [], {}
        with open_file() as raw:
            stream = decompressed(raw, name, packed_size)
            for member, (offset, size, reason) in _last_of_each(tar_members(stream, name), found):
                if member.split(b"/")[-1] in METADATA and not reason:
                    extras[member] = (offset, size)
                elif _is_candidate(member, found) and not reason:
                    found.add(member, size)
                    places.append((offset, size))
                elif reason and is_image(member):
                    found.reject(member, reason)
        read_extra = lambda member: self._read(*extras[member]) if member in extras else None  # noqa: E731
        self.name = name
        found, chosen, labels = arrange(found, read_extra, options, name, archive=True)
        require_images(found, name)
        super().__init__("tar", name, found, *labels)
        self.places = np.array(places, dtype=np.int64).reshape(-1, 2)[chosen]

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


def _is_candidate(member: bytes, found: Found) -> bool:
    """Whether a member is an image to use; what looks like one but points out of the archive is rejected."""
    if not is_image(member):
        return False
    if is_unsafe(member):
        found.reject(member, "its name points outside the archive")
        return False
    return True


def _last_of_each(members: Iterator[tuple[bytes, T]], found: Found) -> Iterator[tuple[bytes, T]]:
    """Members without hidden ones; of several with one name the last, as unpacking would leave it."""
    seen: dict[bytes, T] = {}
    for member, value in members:
        member = member.removeprefix(b"./")
        if is_hidden(member) or not (is_image(member) or member.split(b"/")[-1] in METADATA):
            continue
        if member in seen:
            found.reject(member, "a later member of the archive has the same name and is used instead")
            del seen[member]
        seen[member] = value
    yield from seen.items()


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
