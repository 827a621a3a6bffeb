"""Zip and tar archives, read member by member: nothing is ever extracted, no member name ever used as a path."""

import bz2
import gzip
import io
import lzma
import os
import re
import zlib
from array import array
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray

from epg.data.sources.base import (
    MAX_FILE_BYTES,
    Found,
    Rejected,
    Source,
    SourceOptions,
    check_members,
    check_size,
    readable,
)
from epg.data.sources.layout import LONGEST, METADATA, arrange, is_hidden, is_image, is_image_suffix, is_unsafe
from epg.data.sources.names import Names, pick
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
        found, numbers, extras = _choose(names, entries["size"].astype(np.int64), problems)
        read_extra = lambda member: self.read_member(entries[extras[member]]) if member in extras else None  # noqa: E731
        images = arrange(found, read_extra, options, name, archive=True)
        super().__init__("zip", name, images.found, images.labels, images.class_names)
        self.entries = pick(entries, pick(numbers, images.chosen))

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
        blob, lengths, places, problems = io.BytesIO(), array("q"), array("q"), dict[int, str]()
        with open_file() as raw:
            for part, where, reason in tar_members(decompressed(raw, name, packed_size), name):
                if reason:
                    problems[len(lengths)] = reason
                blob.write(b"".join(part))
                lengths.extend(map(len, part))
                places.extend(where)
                check_members(len(lengths), name)
        table = np.array(places, dtype=np.int64).reshape(-1, 2)
        names = Names.packed(blob.getvalue(), np.array(lengths, dtype=np.int64))
        del blob, lengths, places
        found, numbers, extras = _choose(names, table[:, 1], problems)
        read_extra = lambda member: self._read(*map(int, table[extras[member]])) if member in extras else None  # noqa: E731
        self.name = name
        images = arrange(found, read_extra, options, name, archive=True)
        super().__init__("tar", name, images.found, images.labels, images.class_names)
        self.places = pick(table, pick(numbers, images.chosen))

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
    names: Names, sizes: NDArray[np.int64], problems: Mapping[int, str]
) -> tuple[Found, NDArray[np.int64], dict[bytes, int]]:
    """The images to use, which members they are, and the metadata files by name.

    Hidden members are left out; of several with one name the last counts, as unpacking would leave it; what looks like
    an image and cannot be used is rejected.
    """
    members, hashes, closer, done, first = list[NDArray[np.int64]](), list[NDArray[np.int64]](), set[int](), 0, 0
    for part in names.parts():
        wanted = [k for k, name in enumerate(part) if is_image_suffix(name[-LONGEST:]) or name.endswith(METADATA)]
        chosen = part if len(wanted) == len(part) else [part[k] for k in wanted]
        closer.update(done + k for k in _unusual(chosen))
        members.append(np.fromiter(wanted, np.int64, len(wanted)) + first)
        hashes.append(np.fromiter(map(hash, chosen), np.int64, len(chosen)))
        done, first = done + len(chosen), first + len(part)
    numbers = np.concatenate(members or [np.empty(0, np.int64)])
    listed = Found(names, sizes).take(numbers)
    replaced = _replaced(listed.names, np.concatenate(hashes or [np.empty(0, np.int64)]))
    extras, rejected = dict[bytes, int](), list[Rejected]()
    closer.update(replaced, np.flatnonzero(np.isin(numbers, list(problems))).tolist())
    kept = np.ones(len(numbers), dtype=bool)
    for k in sorted(closer):
        name, reason = listed.names[k], problems.get(int(numbers[k]))
        if k in replaced:
            reason = "a later member of the archive has the same name and is used instead"
        elif name.rpartition(b"/")[2] in METADATA and not reason:
            extras[name] = int(numbers[k])
        elif is_unsafe(name):
            reason = "its name points outside the archive"
        elif not reason and is_image(name):
            continue
        kept[k] = False
        if reason and not is_hidden(name):
            rejected.append(Rejected(readable(name), reason))
    left = np.flatnonzero(kept)
    return replace(listed.take(left), rejected=rejected), pick(numbers, left), extras


def _replaced(names: Names, hashes: NDArray[np.int64]) -> set[int]:
    """Which names come again later. Hashes find the few that may: a set of millions of names takes too much memory."""
    ordered = np.sort(hashes)
    if not (ordered[1:] == ordered[:-1]).any():
        return set()
    order = np.argsort(hashes)
    same = hashes[order[1:]] == hashes[order[:-1]]
    suspects = np.unique(np.concatenate([order[1:][same], order[:-1][same]])).tolist()
    last = {names[k]: k for k in suspects}
    return {k for k in suspects if last[names[k]] != k}


def _unusual(names: list[bytes]) -> Iterable[int]:
    """Which names want a closer look; the usual ones are passed at once."""
    signs = (b"/.", b"//", b"\\", b":/", b"\0", b"__MACOSX", *METADATA)
    search = re.compile(rb"^[./]|/[./]|\\|:/|\0|__MACOSX|metadata\.(csv|jsonl)$").search
    blob = b"/" + b"\n/".join(names)
    return (k for k, name in enumerate(names) if search(name)) if any(sign in blob for sign in signs) else ()


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
