"""The directory of a zip archive, read with constant memory per member (APPNOTE.TXT 6.3), and single members."""

import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from epg.data.sources.base import MAX_FILE_BYTES, check_size
from epg.errors import DataError

END, END64, LOCATOR64, ENTRY, LOCAL = b"PK\5\6", b"PK\6\6", b"PK\6\7", b"PK\1\2", b"PK\3\4"
STORED, DEFLATED = 0, 8
MAX_DIRECTORY = 2**30
UNKNOWN32 = 0xFFFFFFFF


class ZipEntry(NamedTuple):
    """Where a member is and how it is packed."""

    offset: int  # of its local header
    compressed: int
    size: int
    method: int
    crc: int
    flags: int

    def problem(self) -> str | None:
        """Why this member cannot be read, if so."""
        if self.flags & 1:
            return "it is encrypted"
        if self.method not in (STORED, DEFLATED):
            return f"compression method {self.method} is not supported; pack it again with deflate or without"
        if self.size > MAX_FILE_BYTES or self.compressed > MAX_FILE_BYTES:
            return f"its {self.size} bytes are more than the limit of {MAX_FILE_BYTES} for one image"
        return None

    def read(self, stream: BinaryIO) -> bytes:
        """The member's content. Raises DataError where it is damaged or larger than declared."""
        check_size(self.size)
        stream.seek(self.offset)
        header = stream.read(30)
        if len(header) < 30 or not header.startswith(LOCAL):
            raise DataError("the archive has no header at its place")
        name_length, extra_length = struct.unpack_from("<HH", header, 26)
        stream.seek(self.offset + 30 + name_length + extra_length)
        packed = stream.read(self.compressed)
        if len(packed) < self.compressed:
            raise DataError("the archive ends within this image")
        data = packed
        if self.method == DEFLATED:
            unpacker = zlib.decompressobj(-15)
            try:
                data = unpacker.decompress(packed, self.size + 1)
            except zlib.error as error:
                raise DataError(f"its packed data is damaged: {error}") from error
        if len(data) != self.size or zlib.crc32(data) != self.crc:
            raise DataError("it differs from the size and checksum that the archive has for it")
        return data


def zip_entries(stream: BinaryIO, name: str) -> Iterator[tuple[bytes, ZipEntry]]:
    """(member name, entry) in directory order, folders included.

    Raises DataError for a file that is no whole zip archive, and for one whose members overlap (a zip bomb).
    """
    directory, count, file_size = _read_directory(stream, name)
    position, packed = 0, 0
    for _ in range(count):
        if directory[position : position + 4] != ENTRY or position + 46 > len(directory):
            raise DataError(f"{name}: its directory is damaged; pack it again")
        flags, method, _, crc, compressed, size, name_length, extra_length, comment_length = struct.unpack_from(
            "<HHIIIIHHH", directory, position + 8
        )
        (offset,) = struct.unpack_from("<I", directory, position + 42)
        start = position + 46 + name_length
        if UNKNOWN32 in (size, compressed, offset):
            size, compressed, offset = _zip64(directory[start : start + extra_length], size, compressed, offset)
        packed += compressed
        if packed > file_size or offset + compressed > file_size:
            raise DataError(f"{name}: its members overlap or lie outside of it; this is damage or a zip bomb")
        yield directory[position + 46 : start], ZipEntry(offset, compressed, size, method, crc, flags)
        position = start + extra_length + comment_length


def _read_directory(stream: BinaryIO, name: str) -> tuple[bytes, int, int]:
    """The central directory, its number of entries, and the size of the file."""
    file_size = stream.seek(0, 2)
    tail_size = min(file_size, 65557)
    stream.seek(file_size - tail_size)
    tail = stream.read(tail_size)
    end = tail.rfind(END)
    if end < 0 or len(tail) - end < 22:
        raise DataError(f"{name} is no zip archive, or its end is missing; copy or download it again")
    count, size, offset = struct.unpack_from("<HII", tail, end + 10)
    if (count == 0xFFFF or UNKNOWN32 in (size, offset)) and tail[end - 20 : end - 16] == LOCATOR64:
        (place,) = struct.unpack_from("<Q", tail, end - 12)
        stream.seek(min(place, file_size))
        record = stream.read(56)
        if len(record) < 56 or not record.startswith(END64):
            raise DataError(f"{name}: its directory is damaged; pack it again")
        count, size, offset = struct.unpack_from("<QQQ", record, 32)
    if offset + size > file_size or size > MAX_DIRECTORY or count * 46 > size:
        raise DataError(f"{name}: its directory is damaged; pack it again")
    stream.seek(offset)
    return stream.read(size), count, file_size


def _zip64(extra: bytes, size: int, compressed: int, offset: int) -> tuple[int, int, int]:
    """The 64-bit values of a member that does not fit 32 bits."""
    position = 0
    while position + 4 <= len(extra):
        tag, length = struct.unpack_from("<HH", extra, position)
        if tag == 1:
            wanted = [size == UNKNOWN32, compressed == UNKNOWN32, offset == UNKNOWN32]
            body = extra[position + 4 : position + 4 + length]
            if len(body) < 8 * sum(wanted):
                break
            values = iter(struct.unpack_from(f"<{sum(wanted)}Q", body))
            old = (size, compressed, offset)
            size, compressed, offset = (next(values) if w else v for w, v in zip(wanted, old, strict=True))
            break
        position += 4 + length
    return size, compressed, offset
