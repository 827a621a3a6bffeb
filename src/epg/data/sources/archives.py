"""Zip and tar archives, listed by Python's `zipfile` and `tarfile`: nothing is ever extracted, no name used as a path.

Of a million members only names, places and sizes are kept, and handed to other processes.
"""

import os
import struct
import zipfile
import zlib
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.lib.recfunctions import unstructured_to_structured
from numpy.typing import NDArray

from epg.data.sources.base import Source, SourceOptions, check_size, refuse_pointer
from epg.data.sources.kinds import kind_of
from epg.data.sources.layout import arrange
from epg.data.sources.listing import Listing
from epg.data.sources.members import COMPRESSED, TAR, decompressed, is_compressed, tar_members, zip_members
from epg.data.sources.names import pick
from epg.errors import DataError, UserError
from epg.storage.plain_file import open_plain

ZIP_SUFFIXES = (".zip",)
TAR_SUFFIXES = (".tar", *COMPRESSED)
ARCHIVE_SUFFIXES = ZIP_SUFFIXES + TAR_SUFFIXES
MAX_MEMBERS = 5_000_000  # listing a million takes Python's own readers 10 to 30 seconds
LOCAL = struct.Struct("<4s22xHH")  # of a member of a zip: signature, lengths of name and extra field

Open = Callable[[], BinaryIO]  # opens the archive; picklable
ENTRY = np.dtype(
    [("offset", "<i8"), ("size", "<u4"), ("packed", "<u4"), ("crc", "<u4"), ("method", "<u2"), ("file", "<u2")]
)
"""Where a member is: in which archive, where there, and, of a zip, packed how; 24 bytes."""


class ArchiveSource(Source):
    """The images of zip or tar archives, of several as if they were one.

    Args:
        archives: (name, function that opens it, what comes before the names of its members).
        rule: how these archives were chosen, for people to read.
        divided: they are of the wanted split already.
        beside: other files that lie there.
    """

    def __init__(
        self,
        archives: list[tuple[str, Open, bytes]],
        name: str,
        options: SourceOptions,
        rule: str = "",
        divided: bool = False,
        beside: Sequence[str] = (),
    ) -> None:
        self.archives = [(file, open_file) for file, open_file, _ in archives]
        self.streams: dict[int, BinaryIO] = {}
        listed = list_members(archives, apart=False) or list_members(archives, apart=True)
        assert listed is not None
        listing, table = listed
        self.sequential = any(is_compressed(file) for file, _ in self.archives)
        listing.kinds.update(kind_of(os.fsencode(file)) for file in beside)
        listing.complete(ordered=not self.sequential)
        images = arrange(listing, lambda _, number: self._read(table[number]), options, name, rule, divided=divided)
        zipped = all(file.lower().endswith(ZIP_SUFFIXES) for file, _ in self.archives)
        super().__init__("zip" if zipped else "tar", name, images)
        self.entries = pick(table, images.numbers)

    def read(self, index: int) -> bytes:
        data = self._read(self.entries[index])
        refuse_pointer(data[:100])
        return data

    def describe(self, index: int) -> str:
        described = super().describe(index)
        file = self.archives[int(self.entries[index]["file"])][0]
        return described if len(self.archives) == 1 else f"{file}: {described}"

    def at_random(self) -> Source:
        if self.sequential:
            raise UserError(
                f"{self.name}: a compressed tar cannot be read in random order, and its images do not fit into memory. "
                "Prepare it first (epg prepare), or unpack it"
            )
        return self

    def _read(self, entry: np.void) -> bytes:
        number = int(entry["file"])
        if number not in self.streams:
            if len(self.streams) > 128:  # of many shards; each holds a file open
                self.streams.pop(next(iter(self.streams))).close()
            name, open_file = self.archives[number]
            self.streams[number] = decompressed(open_file(), name)
        stream, size = self.streams[number], int(entry["size"])
        check_size(size)
        stream.seek(int(entry["offset"]))
        if entry["method"] != TAR:
            return _unpacked(stream, entry)
        data = stream.read(size)
        if len(data) < size:
            raise DataError("the archive ends within this image")
        return data

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "streams": {}}


def list_members(archives: list[tuple[str, Open, bytes]], *, apart: bool) -> tuple[Listing, NDArray[np.void]] | None:
    """All members of all archives; with `apart`, the name of its archive comes before each file name.

    None where several archives have members of one name, so that they must be kept apart. Raises DataError for more
    than `MAX_MEMBERS`.
    """
    listing, places, seen = Listing(), array("q"), set[int]()
    fields = len(ENTRY.descr)
    for number, (file, open_file, before) in enumerate(archives):
        mark, own = file.partition(".")[0].encode("utf-8", "surrogateescape") + b":", set[int]()
        with open_file() as stream:
            members = zip_members if file.lower().endswith(ZIP_SUFFIXES) else tar_members
            for member, place, reason in members(stream, file):
                folder, slash, base = member.rpartition(b"/")
                name = before + (folder + slash + mark + base if apart else member)
                if reason:
                    listing.reject(name, reason)
                    continue
                listing.add(name, place[1], len(places) // fields)
                places.extend((*place, number))
                if len(places) > MAX_MEMBERS * fields:
                    raise DataError(
                        f"{file}: more than {MAX_MEMBERS} members. Divide it into several archives and prepare each, "
                        "or unpack it and prepare the folder"
                    )
                if len(archives) > 1 and not apart:
                    own.add(hash(name))
        if not seen.isdisjoint(own):
            return None
        seen |= own
    return listing, unstructured_to_structured(np.array(places).reshape(-1, fields), ENTRY)


def _unpacked(stream: BinaryIO, entry: np.void) -> bytes:
    """The member of a zip whose header comes next. Raises DataError where it is damaged or larger than declared."""
    _, size, packed, crc, method, _ = (int(value) for value in entry.item())
    signature, *lengths = LOCAL.unpack(stream.read(LOCAL.size).ljust(LOCAL.size, b"\0"))
    if signature != b"PK\3\4":
        raise DataError("the archive has no header at its place")
    stream.seek(sum(lengths), os.SEEK_CUR)
    data = stream.read(packed)
    if len(data) < packed:
        raise DataError("the archive ends within this image")
    if method == zipfile.ZIP_DEFLATED:
        unpacker = zlib.decompressobj(-15)
        try:
            data = unpacker.decompress(data, size + 1)
        except zlib.error as error:
            raise DataError(f"its packed data is damaged: {error}") from error
    if len(data) != size or zlib.crc32(data) != crc:
        raise DataError("it differs from the size and checksum that the archive has for it")
    return data


def open_archive(address: str, options: SourceOptions) -> Source | None:
    """One zip or tar file."""
    path = Path(address).expanduser()
    if not (path.name.lower().endswith(ARCHIVE_SUFFIXES) and path.is_file()):
        return None
    return ArchiveSource([(path.name, LocalFile(path.resolve()), b"")], path.name, options)


@dataclass(frozen=True)
class LocalFile:
    """Opens a local file for reading; picklable."""

    path: Path

    def __call__(self) -> BinaryIO:
        """Raises DataError for what Git left in its place."""
        stream = open_plain(self.path)
        try:
            refuse_pointer(stream.read(100))
        except DataError as error:
            raise DataError(f"{self.path.name}: {error}") from error
        stream.seek(0)
        return stream
