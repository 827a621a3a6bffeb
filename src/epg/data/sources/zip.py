"""The directory of a zip archive, taken apart in large pieces (APPNOTE.TXT 6.3), and single members."""

import io
import struct
import zlib
from array import array
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from epg.data.sources.base import MAX_FILE_BYTES, check_members, check_size
from epg.data.sources.names import Names
from epg.errors import DataError

END, END64, LOCATOR64, ENTRY, LOCAL = b"PK\5\6", b"PK\6\6", b"PK\6\7", b"PK\1\2", b"PK\3\4"
METHODS = STORED, DEFLATED = 0, 8
MAX_DIRECTORY = 2**30
UNKNOWN32 = 0xFFFFFFFF
PIECE = 2**22  # of the directory, taken apart at once
RECORD = np.dtype(
    [
        ("signature", "<u4"),
        ("versions", "<u4"),
        ("flags", "<u2"),
        ("method", "<u2"),
        ("time", "<u4"),
        ("crc", "<u4"),
        ("compressed", "<u4"),
        ("size", "<u4"),
        ("name_length", "<u2"),
        ("extra_length", "<u2"),
        ("comment_length", "<u2"),
        ("disk", "<u2"),
        ("attributes", "u1", 6),
        ("offset", "<u4"),
    ]
)
LENGTHS = ("name_length", "extra_length", "comment_length")
LARGE = ("size", "compressed", "offset")
ENTRIES = np.dtype(
    [("offset", "u8"), ("compressed", "u8"), ("size", "u8"), ("method", "u2"), ("crc", "u4"), ("flags", "u2")]
)


def problem(entry: np.void) -> str | None:
    """Why a member cannot be read, if so."""
    if entry["flags"] & 1:
        return "it is encrypted"
    if entry["method"] not in METHODS:
        return f"compression method {entry['method']} is not supported; pack it again with deflate or without"
    if max(entry["size"], entry["compressed"]) > MAX_FILE_BYTES:
        return f"its {entry['size']} bytes are more than the limit of {MAX_FILE_BYTES} for one image"
    return None


def read_entry(stream: BinaryIO, entry: np.void) -> bytes:
    """A member's content. Raises DataError where it is damaged or larger than declared."""
    offset, packed_size, size, method, crc = (int(v) for v in entry.item()[:5])
    check_size(size)
    stream.seek(offset)
    header = stream.read(30)
    if len(header) < 30 or not header.startswith(LOCAL):
        raise DataError("the archive has no header at its place")
    name_length, extra_length = struct.unpack_from("<HH", header, 26)
    stream.seek(offset + 30 + name_length + extra_length)
    packed = stream.read(packed_size)
    if len(packed) < packed_size:
        raise DataError("the archive ends within this image")
    data = packed
    if method == DEFLATED:
        unpacker = zlib.decompressobj(-15)
        try:
            data = unpacker.decompress(packed, size + 1)
        except zlib.error as error:
            raise DataError(f"its packed data is damaged: {error}") from error
    if len(data) != size or zlib.crc32(data) != crc:
        raise DataError("it differs from the size and checksum that the archive has for it")
    return data


def zip_entries(stream: BinaryIO, name: str) -> tuple[Names, NDArray[np.void]]:
    """Names (without `./`) and entries (`ENTRIES`) of all members in directory order, folders included.

    Raises DataError for a file that is no whole zip archive, and for one whose members overlap (a zip bomb).
    """
    offset, size, count, file_size = _find_directory(stream, name)
    names, lengths, entries, done = io.BytesIO(), np.empty(count, np.int64), np.empty(count, ENTRIES), 0
    for piece, places in _pieces(stream, offset, size, count, name):
        records = _records(piece, places)
        if (records["signature"] != np.frombuffer(ENTRY, "<u4")).any():
            raise DataError(f"{name}: its directory is damaged; pack it again")
        part = entries[done : done + len(places)]
        for key in ENTRIES.names or ():
            part[key] = records[key]
        starts = places + RECORD.itemsize
        ends = starts + records["name_length"]
        part_names = [piece[a:b].removeprefix(b"./") for a, b in zip(starts.tolist(), ends.tolist(), strict=True)]
        names.write(b"".join(part_names))
        lengths[done : done + len(places)] = list(map(len, part_names))
        large = (part["size"] == UNKNOWN32) | (part["compressed"] == UNKNOWN32) | (part["offset"] == UNKNOWN32)
        for row in np.flatnonzero(large):
            extra = piece[int(ends[row]) : int(ends[row]) + int(records["extra_length"][row])]
            old = (int(part[key][row]) for key in LARGE)
            part["size"][row], part["compressed"][row], part["offset"][row] = _zip64(extra, *old)
        done += len(places)
    if (
        (np.maximum(entries["offset"], entries["compressed"]) > file_size).any()
        or (entries["offset"] + entries["compressed"] > file_size).any()
        or entries["compressed"].sum(dtype=np.float64) > file_size
    ):
        raise DataError(f"{name}: its members overlap or lie outside of it; this is damage or a zip bomb")
    return Names.packed(names.getvalue(), lengths), entries


def _pieces(
    stream: BinaryIO, offset: int, size: int, count: int, name: str
) -> Iterator[tuple[bytes, NDArray[np.int64]]]:
    """The directory in pieces of whole records, and where each begins in its piece: only its predecessor says."""
    stream.seek(offset)
    piece = b""
    while count:
        more = stream.read(min(PIECE, size))
        piece, size = piece + more, size - len(more)
        places, end = _places(piece, count)
        if not len(places):
            raise DataError(f"{name}: its directory is damaged; pack it again")
        yield piece, places
        piece, count = piece[end:], count - len(places)


def _places(piece: bytes, count: int) -> tuple[NDArray[np.int64], int]:
    """Where records begin that lie within a piece, at most `count`, and where the last of them ends.

    Where every place that looks like the beginning of a record is one, as in most archives, they are found all at once.
    """
    data = np.frombuffer(piece, np.uint8)
    like = np.ones(max(0, len(data) - RECORD.itemsize + 1), dtype=bool)
    for k, byte in enumerate(ENTRY):
        like &= data[k : k + len(like)] == byte
    places = np.flatnonzero(like)[:count]
    if len(places) and places[0] == 0:
        records = _records(piece, places)
        ends = places + RECORD.itemsize + sum(records[key].astype(np.int64) for key in LENGTHS)
        if (ends[:-1] == places[1:]).all():
            whole = ends <= len(piece)
            return places[whole], int(ends[whole].max(initial=0))
    return _chained(piece, count)


def _chained(piece: bytes, count: int) -> tuple[NDArray[np.int64], int]:
    """As `_places`, one record after the other: only its predecessor says where a record begins."""
    places, position, lengths = array("q"), 0, struct.Struct("<3H").unpack_from
    while len(places) < count and position + RECORD.itemsize <= len(piece):
        end = position + RECORD.itemsize + sum(lengths(piece, position + 28))
        if end > len(piece):
            break
        places.append(position)
        position = end
    return np.array(places, np.int64), position


def _records(piece: bytes, places: NDArray[np.int64]) -> NDArray[np.void]:
    return sliding_window_view(np.frombuffer(piece, np.uint8), RECORD.itemsize)[places].view(RECORD)[:, 0]


def _find_directory(stream: BinaryIO, name: str) -> tuple[int, int, int, int]:
    """Place, size and number of entries of the central directory, and the size of the file."""
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
    check_members(count, name)
    return offset, size, count, file_size


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
