"""The members of zip and tar archives, listed by Python's `zipfile` and `tarfile`."""

import bz2
import gzip
import io
import lzma
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from epg.data.sources.base import MAX_FILE_BYTES
from epg.data.sources.kinds import is_image
from epg.errors import DataError

METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
TAR = 2**16 - 1  # in the place of a zip's method
MAX_SIZE = 2**60
LARGEST = 2**32 - 1
MAX_RATIO = 100  # of a compressed tar: images, compressed already, are far below
RATIO_START = 2**26

Place = tuple[int, int, int, int, int]  # offset, size, packed, crc, method
Member = tuple[bytes, Place, str | None]  # name, place, why it cannot be read


def zip_members(stream: BinaryIO, name: str) -> Iterator[Member]:
    """The files in a zip archive. Raises DataError for a damaged one, and where members overlap (a zip bomb)."""
    size = stream.seek(0, os.SEEK_END)
    try:
        with zipfile.ZipFile(stream) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, struct.error, EOFError) as error:
        raise DataError(f"{name}: a damaged zip archive or none at all ({error}); copy or download it again") from error
    total = 0
    for member in members:
        total += member.compress_size
        if member.header_offset < 0 or member.header_offset + member.compress_size > size or total > size:
            raise DataError(f"{name}: its members overlap or lie outside of it; this is damage or a zip bomb")
    for k, member in enumerate(members):
        members[k] = None  # type: ignore[call-overload]  # memory of millions
        if member.is_dir():
            continue
        path, largest = _zip_name(member), max(member.file_size, member.compress_size)
        reason = "its name points outside the archive" if is_unsafe(path) else None
        if member.flag_bits & 1:
            reason = "it is encrypted"
        elif member.compress_type not in METHODS:
            reason = f"compression method {member.compress_type} is not supported; pack it again with deflate"
        elif largest > MAX_FILE_BYTES and is_image(path):
            reason = f"its {largest} bytes are more than the limit of {MAX_FILE_BYTES} for one image"
        sizes = min(member.file_size, LARGEST), min(member.compress_size, LARGEST)
        yield tidy(path), (member.header_offset, *sizes, member.CRC, member.compress_type), reason


def _zip_name(member: zipfile.ZipInfo) -> bytes:
    """The name of a member: macOS writes UTF-8 without saying so, and some Windows programs backslashes."""
    raw = member.orig_filename.encode("utf-8" if member.flag_bits & 0x800 else "cp437", "surrogateescape")
    try:
        raw.decode()
    except UnicodeDecodeError:
        raw = member.orig_filename.encode("utf-8", "surrogateescape")
    return raw if b"/" in raw or is_unsafe(raw) else raw.replace(b"\\", b"/")


def tar_members(stream: BinaryIO, name: str, base: int = 0, before: bytes = b"") -> Iterator[Member]:
    """The files in a tar archive, and those of tar archives within it, named like folders.

    Raises DataError for a damaged one: `tarfile` itself takes a damaged header for the end of the archive.
    """
    inner = decompressed(stream, name)
    try:
        with tarfile.open(fileobj=inner, mode="r:") as archive:
            while (member := archive.next()) is not None:
                vars(archive)["members"] = []  # it would keep them all
                if member.isdir():
                    continue
                path = before + tidy(member.name.encode("utf-8", "surrogateescape"))
                if not 0 <= member.size < MAX_SIZE:
                    raise DataError(f"{name}: an impossible size at byte {member.offset}; it is damaged")
                reason = _tar_problem(member, path)
                if path.lower().endswith(b".tar") and not reason and not before:
                    within: Any = archive.extractfile(member)
                    yield from tar_members(within, f"{name}: {member.name}", member.offset_data, path[:-4] + b"/")
                    continue
                place = base + member.offset_data, min(member.size, LARGEST), 0, 0, TAR
                yield path, place, reason
            _check_end(inner, archive.offset, name)
    except DataError:
        raise
    except (tarfile.TarError, OSError, ValueError, EOFError, OverflowError, MemoryError, RecursionError) as error:
        raise DataError(f"{name}: damaged, cut off or no tar archive ({error}); copy or download it again") from error


def _check_end(stream: BinaryIO, offset: int, name: str) -> None:
    stream.seek(offset)
    if stream.read(tarfile.BLOCKSIZE).strip(b"\0"):
        raise DataError(f"{name}: no tar header at byte {offset}: it is damaged, cut off or no tar archive")


def _tar_problem(member: tarfile.TarInfo, path: bytes) -> str | None:
    if is_unsafe(member.name.encode("utf-8", "surrogateescape")):
        return "its name points outside the archive"
    if member.issparse():
        return "it is a sparse file; not read"
    if not member.isreg():
        kinds = {tarfile.LNKTYPE: "a hard link", tarfile.SYMTYPE: "a symbolic link", tarfile.FIFOTYPE: "a pipe"}
        return f"it is {kinds.get(member.type, 'a device')}; not read"
    if member.size > MAX_FILE_BYTES and is_image(path):
        return f"its {member.size} bytes are more than the limit of {MAX_FILE_BYTES} for one image"
    return None


def tidy(name: bytes) -> bytes:
    return name.removeprefix(b"./").replace(b"//", b"/")


def is_unsafe(name: bytes) -> bool:
    """Whether a member name points outside its archive (it is never used as a path, but it is a bad sign)."""
    parts = name.replace(b"\\", b"/").split(b"/")
    return name.startswith((b"/", b"\\")) or b".." in parts or b"\0" in name or parts[0].endswith(b":")


def is_compressed(name: str) -> bool:
    return name.lower().endswith(COMPRESSED)


def decompressed(stream: BinaryIO, name: str) -> BinaryIO:
    """An archive's stream, decompressed where it must be. Reading raises DataError once it grows without end."""
    if not is_compressed(name):
        return stream
    size, lower = stream.seek(0, os.SEEK_END), name.lower()
    stream.seek(0)
    inner: Any
    if lower.endswith("bz2"):
        inner = bz2.BZ2File(stream)
    elif lower.endswith("xz"):
        inner = lzma.LZMAFile(stream)  # noqa: SIM115
    else:
        inner = gzip.GzipFile(fileobj=stream, mode="rb")
    return io.BufferedReader(_Bounded(inner, name, max(RATIO_START, MAX_RATIO * size)), 2**20)


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
        return self._bounded(self.inner.tell(), lambda: self.inner.readinto(buffer))

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        assert whence == os.SEEK_SET
        return self._bounded(offset, lambda: self.inner.seek(offset))

    def _bounded(self, offset: int, action: Callable[[], int]) -> int:
        if offset > self.limit:
            raise DataError(f"{self.name} unpacks to more than {MAX_RATIO} times its size: no archive of images does")
        try:
            return action()
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise DataError(f"{self.name} is damaged: {error}") from error
