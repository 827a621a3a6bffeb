"""The members of a tar archive (ustar, GNU and pax), with constant memory."""

import zlib
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from epg.errors import DataError

BLOCK = 512
WINDOW, NEAR = 2**20, 2**13
WORTHWHILE = 64  # members, to be taken apart together
MAX_HEADER_DATA = 2**20  # long names and pax records
MAX_SIZE = 2**60
REGULAR = (b"0", b"\0", b"7")
KINDS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a pipe",
    b"S": "a sparse file",
}
OCTAL = 8.0 ** np.arange(10, -1, -1)
# Names (without `./`); start and size of the first one's content, of the second one's ...; why they cannot be read.
Members = tuple[list[bytes], list[int], str | None]


def tar_members(stream: BinaryIO, name: str) -> Iterator[Members]:
    """The members in order, folders left out. Raises DataError for a file that is no whole tar archive."""
    position, again, pending, window = 0, 0, dict[bytes, bytes](), _Window(stream)
    while True:
        if position >= again and not pending:
            names, places, end = ordinary(window.at(position, BLOCK), position)
            again = end + 1 if len(names) >= WORTHWHILE else position + WINDOW  # past what ended them, or much later
            if names:
                yield names, places, None
                position = end
                continue
        header = window.read(position, BLOCK)
        if header[:1] in (b"", b"\0") and not header.strip(b"\0"):
            if position == 0:
                raise DataError(f"{name} is an empty tar archive")
            return  # a block of zeros, or the end of the file, ends the archive
        if len(header) < BLOCK or not _is_header(header):
            raise DataError(f"{name}: no tar header at byte {position}: it is damaged, cut off or no tar archive")
        kind, size, start = header[156:157], _number(header[124:136]), position + BLOCK
        own_size = size
        if kind in (b"x", b"L", b"K", b"g"):
            if not 0 <= size <= MAX_HEADER_DATA:
                raise DataError(f"{name}: a header record of {size} bytes at byte {position}; it is damaged")
            data = window.read(start, size)
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
            sparse = any(key.startswith(b"GNU.sparse") for key in pending)
            pending.clear()
            if kind != b"5" and not path.endswith(b"/"):
                reason = KINDS.get(b"S" if sparse else kind) if kind not in REGULAR or sparse else None
                if reason or kind in REGULAR:
                    yield [path.removeprefix(b"./")], [start, own_size], f"it is {reason}; not read" if reason else None
            size = 0 if kind in KINDS and kind != b"S" else own_size
        position = start + -(-size // BLOCK) * BLOCK


def ordinary(window: memoryview, position: int) -> tuple[list[bytes], list[int], int]:
    """Ordinary files that a piece of an archive begins with, taken apart together: names, places, where they end.

    Ordinary is a file with an octal size, all of its name in one field and the right checksum. Whatever else comes ends
    them, and is left to be read with care.
    """
    count = len(window) // BLOCK
    if count < WORTHWHILE:
        return [], [], position
    blocks = np.frombuffer(window, np.uint8, count * BLOCK).reshape(count, BLOCK)
    digits = blocks[:, 124:135] - ord("0")  # what is no digit becomes 8 or more
    sizes = (digits.astype(np.float64) @ OCTAL).astype(np.int64)  # exact, and faster than with integers
    file = (blocks[:, 156] == ord("0")) | (blocks[:, 156] == 0)
    good = file & (blocks[:, 0] != 0) & (blocks[:, 345] == 0) & ((blocks[:, 135] == 0) | (blocks[:, 135] == ord(" ")))
    good &= (digits < 8).all(1)
    follows, follow, place, chain = good.tolist(), (np.arange(1, count + 1) - -sizes // BLOCK).tolist(), 0, []
    while place < count and follows[place]:
        chain.append(place)
        place = follow[place]
    headers = blocks[chain]
    written = headers[:, 148:154] - ord("0")
    sums = headers.sum(1, dtype=np.uint32) - headers[:, 148:156].sum(1, dtype=np.uint32) + 8 * ord(" ")
    right = (sums == written.astype(np.float64) @ OCTAL[-6:]) & (written < 8).all(1)
    names = [name.partition(b"\0")[0] for name in np.ascontiguousarray(headers[:, :100]).view("S100")[:, 0].tolist()]
    wrong = [i for i, name in enumerate(names) if name.endswith(b"/")] + np.flatnonzero(~right).tolist()
    if wrong:
        names, chain = names[: min(wrong)], chain[: min(wrong)]
    if not names:
        return [], [], position
    places = np.stack([position + (np.array(chain) + 1) * BLOCK, sizes[chain]], axis=1).ravel().tolist()
    return [name.removeprefix(b"./") for name in names], places, position + follow[chain[-1]] * BLOCK


class _Window:
    """Reads of a stream: much at once where members are small, only what is asked for elsewhere."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream, self.data, self.begin = stream, b"", 0

    def at(self, position: int, size: int) -> memoryview:
        """At least `size` bytes from a position on, where the stream has them."""
        place = position - self.begin
        if place < 0 or place + size > len(self.data):
            near = 0 <= place < len(self.data) + NEAR
            self.stream.seek(position)
            self.data, self.begin, place = self.stream.read(max(size, WINDOW if near else 0)), position, 0
        return memoryview(self.data)[place:]

    def read(self, position: int, size: int) -> bytes:
        return bytes(self.at(position, size)[:size])


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
