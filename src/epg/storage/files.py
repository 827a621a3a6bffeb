"""Every change of files on disk: written whole, replaced at once, and removed only where they are ours.

The rule of the package: nothing is removed that we did not demonstrably write. What is unfinished, or about to be
removed, has a name that nobody else gives (`hidden`); a finished folder is removed only after its writer has shown, by
names and content, that all in it is its own.

Around every operation on checkpoints is one hook. `hook` is None in production. Tests set it to a function
`hook(operation, action)` that stands around the real operation `action()`: it can end the process before or after it,
let it fail, cut a write short, or record it.
"""

import errno
import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

Kind = Literal["mkdir", "open", "write", "fsync", "rename", "unlink", "rmdir"]
HIDDEN = re.compile(r"\.(?P<name>.+)\.epg-[0-9a-f]{8}\.(?P<kind>tmp|old|rest)")


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
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
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


# Operations -----------------------------------------------------------------------------------------------------------


def mkdir(path: Path) -> None:
    _do(lambda: os.mkdir(path), "mkdir", path)


def make_folder(path: Path) -> None:
    """Creates a folder and those above it, for good."""
    if not path.is_dir():
        make_folder(path.parent)
        mkdir(path)
        sync_folder(path.parent)


def rename(path: Path, target: Path) -> None:
    _do(lambda: os.rename(path, target), "rename", path, target=target)


def sync_folder(path: Path) -> None:
    """Makes the names in a folder last: what was created, renamed and removed in it."""
    if os.name == "nt":  # Windows opens no folders, and writes names through
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        _do(lambda: os.fsync(descriptor), "fsync", path)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Removes a file, a link, or a folder with all that is in it; nothing if it is not there.

    For what has a `hidden` name, and for files that the caller has just made.
    """
    if path.is_dir() and not path.is_symlink():
        for child in sorted(path.iterdir()):
            remove(child)
        _do(lambda: os.rmdir(path), "rmdir", path)
    elif os.path.lexists(path):
        _do(lambda: os.unlink(path), "unlink", path)


def remove_empty(folder: Path) -> None:
    """Raises OSError where it is not empty."""
    _do(lambda: os.rmdir(folder), "rmdir", folder)


# Unfinished and replaced ----------------------------------------------------------------------------------------------


def hidden(path: Path, kind: Literal["tmp", "old", "rest"]) -> Path:
    """A new name beside `path`: for what is not finished yet, is about to be replaced (`old`), or removed (`rest`)."""
    return path.with_name(f".{path.name}.epg-{secrets.token_hex(4)}.{kind}")


def rests(folder: Path, name: str | None = None) -> list[Path]:
    """What killed processes left in a folder of their work on `name`, or on anything; the caller holds its lock."""
    found = [(path, HIDDEN.fullmatch(path.name)) for path in folder.glob(".*.epg-*")]
    return sorted(path for path, match in found if match is not None and name in (None, match["name"]))


def clear_rests(folder: Path, name: str | None = None) -> None:
    """Removes them; what was replaced by something that was then never there gets its name back. Raises OSError."""
    for rest in rests(folder, name):
        match = HIDDEN.fullmatch(rest.name)
        assert match is not None
        if match["kind"] == "old" and not os.path.lexists(folder / match["name"]):
            rename(rest, folder / match["name"])
        else:
            remove(rest)


def discard(path: Path) -> None:
    """Removes a folder of ours; it loses its name first, so that no half of it is ever taken for a whole one."""
    rest = hidden(path, "rest")
    rename(path, rest)
    remove(rest)


@contextmanager
def replacing(file: Path, *, durable: bool = False) -> Iterator[Path]:
    """Gives a temporary name beside `file`, which gets its own when the block ends well.

    Args:
        durable: also after a power cut.

    Raises OSError; the file is then as it was.
    """
    temporary = hidden(file, "tmp")
    try:
        yield temporary
        if durable:
            with temporary.open("rb+") as stream:
                os.fsync(stream.fileno())
        os.replace(temporary, file)
        if durable:
            sync_folder(file.parent)
    finally:
        temporary.unlink(missing_ok=True)


def replace_text(file: Path, text: str) -> None:
    """Another content for a text file, at once and for good; folders are made. Raises OSError."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file, durable=True) as temporary:
        temporary.write_text(text, encoding="utf-8")
