"""One writer per run folder."""

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from epg.distributed import failing_together, rank
from epg.storage.locks import held
from epg.storage.outputs import writing

FILE = "run.lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the folder inside the `with`; every process of a run must call it, the first one holds it for all.

    Raises RunLockedError naming the process that holds it, OutputError where the folder cannot be written.
    """
    with contextlib.ExitStack() as stack:
        with failing_together():
            if rank() == 0:
                with writing(folder):
                    folder.mkdir(parents=True, exist_ok=True)
                    stack.enter_context(held(folder / FILE, f"--out {folder}"))
        yield
