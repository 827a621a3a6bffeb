"""One writer per run folder."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from epg.distributed import failing_together, rank
from epg.errors import OutputError, RunLockedError

FILE = "run.lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the folder inside the `with`; every process of a run must call it, the first one holds it for all.

    Raises RunLockedError naming the process that holds it, OutputError where the folder cannot be written.
    """
    with failing_together():
        stream = _acquire(folder) if rank() == 0 else None
    if stream is None:
        yield
    else:
        with stream:
            yield


def _acquire(folder: Path) -> IO[str]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = (folder / FILE).open("a+")
    except OSError as error:
        raise OutputError(f"--out {folder}: cannot be written ({error.strerror}). Choose another folder.") from error
    # A lock outlives its process in forked copies of the open file: loader workers would hold it after a kill -9.
    os.register_at_fork(after_in_child=stream.close)
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        stream.seek(0)
        holder = stream.read().strip() or "?"
        stream.close()
        raise RunLockedError(
            f"--out {folder}: process {holder} is writing to it. Wait for it, or choose another folder."
        ) from None
    stream.truncate(0)
    stream.write(str(os.getpid()))
    stream.flush()
    return stream
