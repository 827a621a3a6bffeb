"""Small checkpoints, and hooks for `epg.storage.files` that crash, fail, cut short or record."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from epg.checkpoint import checkpoint, saving
from epg.errors import ArtefactError
from epg.storage import files
from epg.storage.files import Operation
from tests.helpers import run_state, tiny_config

STATE = run_state(tiny_config(), ["a", "b", "c"])


def tensors_of(step: int, size: int = 40) -> dict[str, dict[str, Tensor]]:
    """Tensors that differ from step to step, `size` numbers in the largest."""
    generator = torch.Generator().manual_seed(step)
    return {
        "model": {"a": torch.randn(size, generator=generator), "b": torch.tensor(step)},
        "optimizer": {"a.exp_avg": torch.randn(size, generator=generator), "a.step": torch.tensor(float(step))},
        "ema-0.9": {"a": torch.randn(size, generator=generator)},
    }


def save(folder: Path, step: int, keep: int = 2, keep_every: int = 0, size: int = 40) -> Path:
    return saving.save(folder, step, tensors_of(step, size), STATE, keep, keep_every)


def valid(folder: Path) -> list[int]:
    """Steps whose checkpoint is intact to the last byte and holds that step's tensors."""
    found = []
    for path in checkpoint.listing(folder):
        try:
            loaded = checkpoint.read(path)
            groups = {name: loaded.tensors(name) for name in loaded.groups}
        except ArtefactError:
            continue
        wanted = tensors_of(loaded.step, len(groups["model"]["a"]))
        assert groups.keys() == wanted.keys()
        assert all(torch.equal(groups[g][k], t) for g, named in wanted.items() for k, t in named.items())
        found.append(loaded.step)
    return sorted(set(found))


@contextlib.contextmanager
def hooked(hook: files.Hook) -> Iterator[None]:
    """`hook` stands around every file operation inside the `with`."""
    files.hook = hook
    try:
        yield
    finally:
        files.hook = None


class Recorder:
    """Performs every operation and writes it down, with the contents of writes."""

    def __init__(self, leave_out: Callable[[Operation], bool] = lambda operation: False) -> None:
        self.operations: list[Operation] = []
        self.leave_out = leave_out

    def __call__(self, operation: Operation, action: Callable[[], Any]) -> Any:
        if self.leave_out(operation):
            return None
        data = None if operation.data is None else memoryview(bytes(operation.data))
        result = action()
        self.operations.append(Operation(operation.kind, operation.path, operation.target, data))
        return result


class CrashError(BaseException):
    """Nothing in the package catches it, and no file operation happens after it: as good as a crash, but cheaper."""


class CrashAt:
    """Ends the process (`hard`), or all it does with files, before or after operation number `at`."""

    def __init__(self, at: int, after: bool, hard: bool = False) -> None:
        self.at, self.after, self.hard, self.count = at, after, hard, 0

    def __call__(self, operation: Operation, action: Callable[[], Any]) -> Any:
        self.count += 1
        if self.count - 1 < self.at:
            return action()
        if self.count - 1 == self.at and self.after:
            action()
        if self.hard:
            os._exit(9)
        raise CrashError


class FailAt:
    """Operations number `first` to `last` raise this error instead of happening."""

    def __init__(self, number: int, first: int, last: int | None = None) -> None:
        self.number, self.first, self.last, self.count = number, first, first if last is None else last, 0

    def __call__(self, operation: Operation, action: Callable[[], Any]) -> Any:
        self.count += 1
        if self.first <= self.count - 1 <= self.last:
            raise OSError(self.number, os.strerror(self.number), str(operation.path))
        return action()


def crashes(action: Callable[[], Any], hook: CrashAt) -> bool:
    """Whether `action` came to the operation at which the hook ends it."""
    if not hook.hard:
        try:
            with hooked(hook):
                action()
        except CrashError:
            return True
        return False
    pid = os.fork()
    if pid == 0:
        try:
            with hooked(hook):
                action()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
