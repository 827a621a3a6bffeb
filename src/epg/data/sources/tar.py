"""The members of a tar archive (ustar, GNU and pax), one header at a time, with constant memory."""

import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

from epg.errors import DataError

BLOCK = 512
WINDOW, NEAR = 2**16, 2**13
MAX_HEADER_DATA = 2**20  # long names and pax records
MAX_SIZE = 2**60
ENDS = (b"", b"\0")  # a block of zeros, or the end of the file, ends the archive
REGULAR = (b"0", b"\0", b"7")
KINDS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a pipe",
    b"S": "a sparse file",
}
Member = tuple[int, int, str | None]  # where the content starts, its size, why it cannot be read


def tar_members(stream: BinaryIO, name: str) -> Iterator[tuple[bytes, Member]]:
    """(member name, member) in order, folders left out. Raises DataError for a file that is no whole tar archive."""
    position, pending, read = 0, dict[bytes, bytes](), _windowed(stream)
    while True:
        header = read(position, BLOCK)
        if header[:1] in (b"", b"\0") and not header.strip(
            b"\0"
        ):  # a block of zeros, or the end of the file, ends the archive
            if position == 0:
                raise DataError(f"{name} is an empty tar archive")
            return
        if len(header) < BLOCK or not _is_header(header):
            raise DataError(f"{name}: no tar header at byte {position}: it is damaged, cut off or no tar archive")
        kind, size, start = header[156:157], _number(header[124:136]), position + BLOCK
        own_size = size
        if kind in (b"x", b"L", b"K", b"g"):
            if not 0 <= size <= MAX_HEADER_DATA:
                raise DataError(f"{name}: a header record of {size} bytes at byte {position}; it is damaged")
            data = read(start, size)
            if kind == b"x":
                pending.update(_pax_records(data))
            elif kind == b"L":
                pending[b"path"] = data.rstrip(b"\0")
        else:
            digits = pending.get(b"size", b"")
            if digits.isdigit() and len(digits) < 20:
                own_size = int(digits)
            if not 0 <= own_size < MAX_SIZE:
                raise DataError(f"{name}: an impossible size at byte {position}; it is damaged")
            path = pending.get(b"path") or _name(header)
            sparse = bool(pending) and any(key.startswith(b"GNU.sparse") for key in pending)
            if pending:
                pending = {}
            if kind != b"5" and not path.endswith(b"/"):
                reason = KINDS.get(b"S" if sparse else kind) if kind not in REGULAR or sparse else None
                if reason or kind in REGULAR:
                    yield path, (start, own_size, f"it is {reason}; not read" if reason else None)
            size = own_size if kind in REGULAR or kind == b"S" else 0 if kind in KINDS else own_size
        position = start + -(-size // BLOCK) * BLOCK


def _windowed(stream: BinaryIO) -> Callable[[int, int], bytes]:
    """Reads (position, size) of a stream: much at once where members are small, only what is asked for elsewhere."""
    window, begin = b"", 0

    def read(position: int, size: int) -> bytes:
        nonlocal window, begin
        place = position - begin
        if place < 0 or place + size > len(window):
            near = 0 <= place < len(window) + NEAR
            stream.seek(position)
            window, begin, place = stream.read(max(size, WINDOW if near else 0)), position, 0
        return window[place : place + size]

    return read


def _is_header(header: bytes) -> bool:
    """Whether the checksum is right: the sum of all bytes with the checksum's own taken as blanks.

    Modulo 65521, as the lower half of Adler-32 is that sum plus one, and fast.
    """
    own = header[148:156]
    return ((zlib.adler32(header) & 0xFFFF) - 1 - sum(own) + 8 * 32 - _number(own)) % 65521 == 0


def _number(field: bytes) -> int:
    """An octal number, or GNU's binary one; -1 for neither."""
    if field[0] in (0x80, 0xFF):
        return int.from_bytes(field[1:], "big", signed=False) if field[0] == 0x80 else -1
    try:
        return int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        return -1


def _name(header: bytes) -> bytes:
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _pax_records(data: bytes) -> dict[bytes, bytes]:
    """`length key=value\\n` records."""
    records, position = {}, 0
    while position < len(data):
        length, _, _ = data[position:].partition(b" ")
        if not length.isdigit() or len(length) > 8 or int(length) <= len(length):
            break
        key, _, value = data[position + len(length) + 1 : position + int(length) - 1].partition(b"=")
        records[key] = value
        position += int(length)
    return records
