"""Every file operation of writing and removing checkpoints: one function each, around all of them one hook.

`hook` is None in production. Tests set it to a function `hook(operation, action)` that stands around the real
operation `action()`: it can end the process before or after it, let it fail, cut a write short, or record it.
"""

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

Kind = Literal["mkdir", "open", "write", "fsync", "rename", "unlink", "rmdir"]


@dataclass(frozen=True)
class Operation:
    """What is about to happen; `target` is the new name of a rename, `data` what a write holds."""

    kind: Kind
    path: Path
    target: Path | None = None
    data: memoryview | None = None


Hook = Callable[[Operation, Callable[[], Any]], Any]
hook: Hook | None = None
done = 0
"""Operations that this process has done so far."""


def _do(action: Callable[[], Any], kind: Kind, path: Path, **details: Any) -> Any:
    global done
    result = action() if hook is None else hook(Operation(kind, path, **details), action)
    done += 1
    return result


class NewFile:
    """A file that must not exist yet, open for writing; no buffer stands between `write` and the system."""

    def __init__(self, path: Path) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self.path = path
        self.descriptor: int = _do(lambda: os.open(path, flags, 0o666), "open", path)

    def write(self, data: memoryview) -> None:
        """Writes all of it: the system may take less than it is given."""
        while data:
            count: int = _do(partial(os.write, self.descriptor, data), "write", self.path, data=data)
            if count <= 0:
                raise OSError(errno.EIO, os.strerror(errno.EIO), str(self.path))
            data = data[count:]

    def sync(self) -> None:
        _do(lambda: os.fsync(self.descriptor), "fsync", self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, t: TracebackType | None) -> None:
        os.close(self.descriptor)


def mkdir(path: Path) -> None:
    _do(lambda: os.mkdir(path), "mkdir", path)


def rename(path: Path, target: Path) -> None:
    _do(lambda: os.rename(path, target), "rename", path, target=target)


def sync_folder(path: Path) -> None:
    """Makes the names in a folder last: what was created, renamed and removed in it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        _do(lambda: os.fsync(descriptor), "fsync", path)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Removes a file, a link, or a folder with all that is in it; nothing if it is not there."""
    if path.is_dir() and not path.is_symlink():
        for child in sorted(path.iterdir()):
            remove(child)
        _do(lambda: os.rmdir(path), "rmdir", path)
    elif os.path.lexists(path):
        _do(lambda: os.unlink(path), "unlink", path)
