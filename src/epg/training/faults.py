"""What can go wrong in a run of days: numbers that are not finite, stop signals, a process that hangs."""

import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from epg.data.loader import Batch
from epg.distributed import rank, world_size
from epg.errors import DivergedError, InterruptedRunError
from epg.objectives.base import Objective

STUCK_EXIT_CODE = 71


@dataclass
class LossScale:
    """Dynamic loss scale of fp16: halved when a gradient overflows, doubled after `growth_steps` good steps.

    Decided from the gradient norm of all processes, so that every process scales alike, sharded or not.
    """

    enabled: bool
    scale: float = 2.0**16
    good_steps: int = 0
    growth_steps: int = 2000

    @property
    def factor(self) -> float:
        return self.scale if self.enabled else 1.0

    def unscale(self, parameters: Sequence[nn.Parameter]) -> None:
        """Divides the gradients by the scale."""
        if self.enabled:
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad.div_(self.scale)

    def update(self, finite: bool) -> bool:
        """Adapts to a step; True if a non-finite gradient is explained by the scale, which is now smaller."""
        if not self.enabled:
            return False
        if not finite:
            self.good_steps = 0
            explained = self.scale > 1.0
            self.scale = max(1.0, self.scale / 2)
            return explained
        self.good_steps += 1
        if self.good_steps == self.growth_steps:
            self.scale, self.good_steps = 2 * self.scale, 0
        return False


@dataclass
class Skips:
    """Steps left out because a gradient was not finite: in all, and in a row, of which `limit` end the run."""

    limit: int
    total: int = 0
    in_row: int = 0

    def add(self, what: str, explain: Callable[[], str], folder: Path) -> None:
        """Counts one, with a warning. Raises DivergedError, with the cause that `explain` finds, for the last one."""
        self.total += 1
        self.in_row += 1
        if self.in_row < self.limit:
            warnings.warn(f"{what}; skipped, {self.in_row} of {self.limit} in a row", stacklevel=3)
            return
        raise DivergedError(
            f"{what}, the {self.limit}. step in a row. Cause: {explain()}. Checkpoints in {folder} are intact. Lower "
            "--optimizer.lr, set --optimizer.clip, or use --training.precision fp32, and run again."
        )


class StopSignals:
    """SIGTERM, SIGINT and SIGUSR1 ask the loop to save and stop after the step; a second one acts at once."""

    NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

    def __init__(self) -> None:
        self.received = 0
        """Number of the signal that came, 0 for none."""
        self._previous: dict[int, Any] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        for n, handler in self._previous.items():
            signal.signal(n, handler)

    @contextlib.contextmanager
    def caught(self) -> Iterator[None]:
        """Handles the signals inside the `with`; outside the main thread Python allows no handlers.

        A process that was told to stop and then loses the others, which were told so too, was interrupted and has not
        failed: it raises InterruptedRunError.
        """
        if threading.current_thread() is threading.main_thread():
            self._previous = {n: signal.signal(n, self._handle) for n in self.NUMBERS}
        try:
            yield
        except RuntimeError as error:
            if not self.received or world_size() == 1:
                raise
            raise InterruptedRunError(
                f"stopped by {signal.Signals(self.received).name} while other processes ended ({error}). "
                "Run the same command again to continue from the newest checkpoint."
            ) from error
        finally:
            for n, handler in self._previous.items():
                signal.signal(n, handler)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """A stop signal inside the `with` raises InterruptedRunError: for start-up, when there is nothing to save yet."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise InterruptedRunError(
            f"stopped by {signal.Signals(number).name} before the first step; nothing was lost. Run the same command "
            "again."
        )

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {n: signal.signal(n, stop) for n in StopSignals.NUMBERS}
    try:
        yield
    finally:
        for n, handler in previous.items():
            signal.signal(n, handler)


@torch.no_grad()
def explain_non_finite(objective: Objective, batches: Sequence[Batch], step: int) -> str:
    """Where a non-finite number comes from: a weight, or the loss term and samples of a block of random numbers.

    Runs the step's forward passes again, block by block; every process must call it together.
    """
    broken = [name for name, p in objective.named_parameters() if not bool(torch.isfinite(p).all())]
    findings = [f"weight {name}" for name in broken[:3]]
    for batch in batches:
        for start in range(0, len(batch), objective.block):
            part = Batch(
                batch.images[start : start + objective.block],
                batch.labels[start : start + objective.block],
                batch.indices[start : start + objective.block],
                batch.first + start,
            )
            losses = objective(part, step)
            broken_terms = [name for name, value in losses.items() if not bool(torch.isfinite(value))]
            terms = [name for name in broken_terms if name != "loss" and "/" not in name]
            if terms and not broken:
                findings.append(f"{', '.join(terms)} of samples {part.indices.tolist()}")
    found = "; ".join(findings[:3]) or "the gradient alone; every loss term is finite"
    if world_size() == 1:
        return found
    everywhere: list[Any] = [None] * world_size()
    dist.all_gather_object(everywhere, found)
    return " | ".join(f"rank {i}: {text}" for i, text in enumerate(everywhere))


class Watchdog:
    """Ends a process that completed no step for `timeout` seconds, after saying where each of its threads is.

    A collective that waits for a dead or stopped process would otherwise hang for ever.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout, self.step = timeout, 0
        self._beat = time.monotonic()
        self._done = threading.Event()

    def beat(self, step: int) -> None:
        """Called after every step, and after whatever else takes long."""
        self.step, self._beat = step, time.monotonic()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Watches inside the `with`."""
        self.beat(self.step)
        thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        if self.timeout > 0:
            thread.start()
        try:
            yield
        finally:
            self._done.set()

    def _watch(self) -> None:
        while not self._done.wait(min(1.0, self.timeout / 4)):
            silent = time.monotonic() - self._beat
            if silent > self.timeout:
                print(
                    f"watchdog: rank {rank()} completed no step for {silent:.0f} s after step {self.step}; this or "
                    f"another process hangs. --training.timeout sets the limit. Threads:",
                    file=sys.stderr,
                    flush=True,
                )
                faulthandler.dump_traceback(file=sys.stderr)
                os._exit(STUCK_EXIT_CODE)
