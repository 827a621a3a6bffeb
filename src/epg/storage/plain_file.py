"""Files for reading that are files: opening a pipe would wait for a writer, and a device may have no end."""

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path


def open_plain(path: str | bytes | Path) -> BufferedReader:
    """A regular file for reading. Raises OSError, for a pipe, a device or a folder too; never waits."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        what = "is a folder" if stat.S_ISDIR(mode) else "is a pipe or a device, not a file"
        raise OSError(errno.EINVAL, what, os.fspath(path))
    return open(path, "rb", opener=lambda *_: descriptor)  # by its path: readers ask the stream for it


def read_plain(path: str | Path) -> bytes:
    """All of a regular file. Raises OSError."""
    with open_plain(path) as stream:
        return stream.read()
