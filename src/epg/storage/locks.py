"""One writer at a time: a lock file, which the system frees the moment its process is gone."""

import contextlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from epg.errors import RunLockedError


@contextmanager
def held(file: Path, what: str, *, wait: bool = False, keep: bool = True) -> Iterator[None]:
    """Holds a lock file, which says who does, inside the `with`.

    Args:
        what: what it protects, for the message.
        wait: until it is free.
        keep: leave the file, which is then found again; otherwise it is removed at the end.

    Raises RunLockedError naming the process that holds it; OSError where the file cannot be made.
    """
    lock = _acquire(file, what, -1 if wait else 0)
    try:
        with contextlib.suppress(PermissionError):  # Windows lets nobody write to a locked file
            file.write_text(str(os.getpid()))
        yield
    finally:
        if not keep:
            with contextlib.suppress(OSError):
                file.unlink()
        lock.release()


def is_held(file: Path) -> bool:
    """Whether a process of this machine holds a lock file now; nothing is written. Always False on Windows."""
    if sys.platform == "win32":
        return False
    import fcntl

    try:
        with file.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _acquire(file: Path, what: str, timeout: float) -> FileLock:
    while True:
        # Whoever held it may remove the file between our opening and locking it; ours would then be a lock that nobody
        # else sees. The file that is open here cannot come back under its name once it is gone.
        with file.open("a") as before:
            lock = FileLock(file, timeout=timeout, thread_local=False)
            try:
                lock.acquire()
            except Timeout:
                raise RunLockedError(
                    f"{what}: process {_holder(file)} is writing to it. Wait for it, or choose another folder."
                ) from None
            try:
                if os.path.samestat(os.fstat(before.fileno()), file.stat()):
                    return lock
            except FileNotFoundError:
                pass
            lock.release()


def _holder(file: Path) -> str:
    try:
        return file.read_text().strip() or "?"
    except OSError:
        return "?"
