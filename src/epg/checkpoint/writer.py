"""Checkpoints while training goes on: a snapshot in memory, written by a thread of its own."""

import threading
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from epg.checkpoint import export, saving
from epg.distributed import agree, rank
from epg.errors import DivergedError, InterruptedRunError, OutputError
from epg.storage import artefact, files

Groups = Mapping[str, Mapping[str, Tensor]]
RETRIES = 3
FIRST_DELAY = 1.0  # seconds before the first retry; each further one waits four times as long
PAUSE = 0.2  # seconds between two signs of life of a write that is waited for


def moved(folder: Path) -> OutputError:
    """The run folder is no longer where it was."""
    return OutputError(
        f"{folder}: was renamed or removed while the run was writing to it, so the run ends; its checkpoints are where "
        "the folder is now. Give it its name back, or pass the new one as --out, and run the same command again."
    )


def place_of(folder: Path) -> tuple[int, int] | None:
    """What tells a folder from another one of its name; None where there is none."""
    try:
        found = folder.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


class Snapshot:
    """Copies of tensors in CPU memory, which is kept from one snapshot to the next (pinned for tensors on a GPU)."""

    def __init__(self) -> None:
        self._memory: dict[tuple[str, str], Tensor] = {}

    def take(self, groups: Groups) -> dict[str, dict[str, Tensor]]:
        """Copies of all tensors, complete on return; the ones of the snapshot before are overwritten."""
        taken = {name: {key: self._copy((name, key), t) for key, t in group.items()} for name, group in groups.items()}
        for device in {t.device for group in groups.values() for t in group.values() if t.is_cuda}:
            torch.cuda.current_stream(device).synchronize()
        return taken

    def _copy(self, key: tuple[str, str], tensor: Tensor) -> Tensor:
        memory = self._memory.get(key)
        if memory is None or (memory.shape, memory.dtype) != (tensor.shape, tensor.dtype):
            memory = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._memory[key] = memory
        return memory.copy_(tensor.detach(), non_blocking=tensor.is_cuda)


class CheckpointWriter:
    """Writes checkpoints into `run/checkpoints`, and `run/export`, while training goes on.

    A write that fails (disk full, read-only, I/O error) is tried again `RETRIES` times and then given up with a
    warning; training continues, earlier checkpoints stay, and the next one tries afresh. Only `finish`, at the end of
    the run, turns a failed last checkpoint into an error. At most one write is under way. What is not finite is not
    written: that, and whatever else goes wrong, is `failed`, for the training to stop.

    As a context manager around the training it waits at the end for the write under way, and raises OutputError if the
    run ends, or stops as asked, without its last checkpoint. On a second Ctrl-C it does not wait.
    """

    def __init__(self, run: Path, keep: int, keep_every: int = 0, *, first_delay: float | None = None) -> None:
        self.run, self.keep, self.keep_every = run, keep, keep_every
        self.first_delay = FIRST_DELAY if first_delay is None else first_delay
        self._snapshot = Snapshot()
        self._thread: threading.Thread | None = None
        self._superseded = threading.Event()
        self._failure: BaseException | None = None  # of the newest checkpoint
        self._moved: OutputError | None = None  # for good, whatever becomes of the write that is under way
        self._reported = False
        self._waited = 0
        self.written: Path | None = None
        """The newest checkpoint that is on disk, of those that it has written."""
        self._place = place_of(run) if rank() == 0 else None

    @property
    def failed(self) -> int:
        """The exit code of what went wrong and no later checkpoint puts right, which `finish` raises; 0 for nothing."""
        if self._away():
            return OutputError.exit_code
        if self._failure is None or isinstance(self._failure, OutputError):
            return 0
        return getattr(self._failure, "exit_code", 1)

    def _away(self) -> bool:
        """Whether the run folder is, or once was, no longer where it was."""
        if self._moved is None and self._place is not None and place_of(self.run) != self._place:
            self._moved = moved(self.run)
        return self._moved is not None

    def supersede(self) -> None:
        """What is under way is not tried again if it fails."""
        self._superseded.set()

    def busy(self, patience: float) -> bool:
        """Whether a write is still under way after `patience` seconds."""
        if self._thread is not None:
            self._thread.join(patience)
        return self._thread is not None and self._thread.is_alive()

    def wait(self, device: torch.device, alive: Callable[[], None], retrying: bool = False) -> None:
        """Waits for the write under way, on every process, calling `alive` as long as it gets on.

        Without `retrying` a write that has failed is not tried again, as a newer one is waiting.
        """
        before = -1.0
        while True:
            if not retrying:
                self.supersede()
            busy, progress = agree(self.busy(PAUSE), self.progress, device=device)
            if not busy:
                return
            if progress != before:
                alive()
            before = progress

    @property
    def progress(self) -> int:
        """Grows as long as a write gets on, or waits to be tried again."""
        return files.done + self._waited

    def submit(self, step: int, tensors: Groups, state: Mapping[str, Any]) -> None:
        """Copies the tensors, then writes the copies in the background. Waits for the write under way first."""
        self.supersede()  # whatever is waiting to be tried again is out of date
        self._join()
        if self.failed:
            return
        self.poll()
        self._superseded.clear()
        self._failure, self._reported = None, False
        taken = self._snapshot.take(tensors)
        # A daemon, so that a second Ctrl-C ends the process at once; half a checkpoint does no harm.
        self._thread = threading.Thread(
            target=self._write, args=(step, taken, state), name=f"checkpoint-{step}", daemon=True
        )
        self._thread.start()

    @property
    def intact(self) -> bool:
        """Whether the newest checkpoint is on disk, once it is no longer under way."""
        return self._failure is None and self._moved is None

    def poll(self) -> None:
        """Says once, as a warning, that the newest checkpoint could not be written."""
        if isinstance(self._failure, OutputError) and not self._reported:
            self._reported = True
            warnings.warn(f"{self._failure} Training goes on; the next checkpoint tries again.", stacklevel=2)

    def finish(self) -> None:
        """Waits until the newest checkpoint is written and verified. Raises OutputError, or what else failed."""
        self._join()
        failure = self._moved or self._failure
        if failure is not None:
            raise failure

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, t: TracebackType | None) -> None:
        if kind is None:
            self.finish()
        elif not issubclass(kind, KeyboardInterrupt):
            self.supersede()  # somebody waits for the end of this process
            self._join()
            if issubclass(kind, InterruptedRunError):
                self.finish()

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _write(self, step: int, tensors: Groups, state: Mapping[str, Any]) -> None:
        saved, delay = False, self.first_delay
        for name, group in tensors.items():
            if broken := artefact.not_finite(group):
                self._failure = DivergedError(
                    f"step {step}: {name} {broken} is not finite, so no checkpoint was written. Those before it are "
                    f"intact in {self.run}; run again from them, with a lower --optimizer.lr if it recurs."
                )
                return
        for attempt in range(1 + RETRIES):
            if self._away():
                return
            try:
                if not saved:
                    place = saving.save(self.run / "checkpoints", step, tensors, state, self.keep, self.keep_every)
                    saved = True
                export.write(self.run / export.FOLDER, step, tensors, state)
                self._failure, self.written = None, place
                return
            except OutputError as error:
                self._failure = error
            except BaseException as error:  # raised again by `finish`
                self._failure = error
                self._away()  # which then is why
                return
            if attempt < RETRIES and self._pause(delay):
                return
            delay *= 4

    def _pause(self, seconds: float) -> bool:
        """Waits before another try, saying so; whether it has become needless."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._waited += 1
            if self._superseded.wait(min(left, PAUSE)):
                return True
        return False
