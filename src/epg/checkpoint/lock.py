"""One writer per run folder."""

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from epg.distributed import failing_together, rank
from epg.storage.locks import held
from epg.storage.outputs import writing

FILE = "run.lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the folder inside the `with`; every process of a run must call it, the first one holds it for all.

    A folder that was made for it, and that nothing was written to, is removed again.

    Raises RunLockedError naming the process that holds it, OutputError where the folder cannot be written.
    """
    with contextlib.ExitStack() as stack:
        with failing_together():
            if rank() == 0:
                with writing(folder):
                    made = [place for place in (folder, *folder.parents) if not place.exists()]
                    folder.mkdir(parents=True, exist_ok=True)
                    stack.callback(remove_empty, made)
                    stack.enter_context(held(folder / FILE, f"--out {folder}"))
                    stack.callback(remove_alone, folder / FILE, made)
        yield


def remove_alone(lock: Path, made: Sequence[Path]) -> None:
    """Removes a lock file, while it is held, that is all there is in a folder that was made for it."""
    with contextlib.suppress(OSError):
        if made and list(lock.parent.iterdir()) == [lock]:
            lock.unlink()


def remove_empty(folders: Sequence[Path]) -> None:
    """Removes folders, the innermost first, up to one that holds something."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()
