"""Compressed tar archives as streams."""

import bz2
import gzip
import io
import lzma
import os
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO

from epg.errors import DataError

MAX_RATIO = 100  # of a compressed tar: images, compressed already, are far below
RATIO_START = 2**26


def is_compressed(name: str) -> bool:
    return name.lower().endswith((".tar.gz", ".tgz", ".tar.bz2", ".tar.xz"))


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
