"""Numbered jobs on several processes, where a job may kill or hang its process without taking the others along."""

import multiprocessing as mp
import os
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

from epg.errors import UserError

HANG_S = 300.0  # of one item
REPORT_S = 0.2
NONE = -1

# (job, items that crashed with the reason, function to call with the number of each item)
Work = Callable[[int, dict[int, str], Callable[[int], None]], None]


@dataclass
class _Worker:
    process: Any
    pipe: Connection
    item: Any  # shared: the item in work, NONE before the first
    job: int | None = None
    seen: tuple[int, float] = (NONE, 0.0)  # item, when it was first seen


@dataclass
class _Crashes:
    """Items whose process died. The first time may be bad luck (memory ran out), the second is not."""

    counts: dict[int, int] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)

    def add(self, item: int, reason: str) -> None:
        self.counts[item] = self.counts.get(item, 0) + 1
        if self.counts[item] > 1:
            self.reasons[item] = reason


def run_jobs(
    work: Work,
    jobs: Iterable[int],
    workers: int,
    on_items: Callable[[int], None],
    hang_s: float = HANG_S,
) -> None:
    """Call `work` for every job, in this process (workers = 0) or in `workers` others.

    `on_items(n)` hears now and then how many further items were begun. An item whose process dies twice, or works for
    `hang_s` seconds on it, is given to `work` as crashed when its job is tried again. Raises what `work` raises.
    """
    queue = deque(jobs)
    if workers == 0:
        for job in queue:
            work(job, {}, lambda item: on_items(1))
        return
    context, crashes, running = mp.get_context("spawn"), _Crashes(), list[_Worker]()
    try:
        while queue or any(worker.job is not None for worker in running):
            while queue and len(running) < workers:
                running.append(_start(context, work))
            for worker in running:
                if queue and worker.job is None:
                    worker.job = queue.popleft()
                    worker.pipe.send((worker.job, crashes.reasons))
            wait([worker.pipe for worker in running if worker.job is not None], timeout=1.0)
            for worker in list(running):
                if not _listen(worker, on_items, hang_s, crashes):
                    running.remove(worker)
                    if worker.job is not None:
                        queue.appendleft(worker.job)
    finally:
        for worker in running:
            worker.process.kill()
        for worker in running:
            worker.process.join()


def _start(context: Any, work: Work) -> _Worker:
    ours, theirs = context.Pipe()
    item = context.RawValue("q", NONE)
    process = context.Process(target=_serve, args=(work, theirs, item), daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, ours, item)


def _serve(work: Work, pipe: Connection, current: Any) -> None:
    """The life of a worker: jobs in, counts and ends out. Ends with its parent."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which stops us
    count, told = 0, time.monotonic()

    def on_item(item: int) -> None:
        nonlocal count, told
        current.value = item
        count += 1
        if time.monotonic() - told > REPORT_S:
            pipe.send(("items", count))
            count, told = 0, time.monotonic()

    try:
        while True:
            job, crashed = pipe.recv()
            try:
                work(job, crashed, on_item)
                pipe.send(("items", count))
                count = 0
                pipe.send(("done", None))
            except (UserError, OSError) as error:
                pipe.send(("error", error))
            except Exception as error:
                import traceback

                pipe.send(("error", RuntimeError(f"{error}\n{traceback.format_exc()}")))
            current.value = NONE
    except (EOFError, BrokenPipeError):  # the parent is gone
        os._exit(1)


def _listen(worker: _Worker, on_items: Callable[[int], None], hang_s: float, crashes: _Crashes) -> bool:
    """Take in what a worker has to say; False: it is dead."""
    try:
        while worker.pipe.poll():
            kind, value = worker.pipe.recv()
            if kind == "items":
                on_items(value)
            elif kind == "done":
                worker.job = None
            else:
                raise value
    except (EOFError, ConnectionResetError):
        worker.process.join()
        code = worker.process.exitcode
        if worker.item.value == NONE:
            raise UserError(
                f"a worker process died before its first image (exit code {code}). If memory is short, use fewer "
                "--workers"
            ) from None
        cause = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        crashes.add(worker.item.value, f"decoding it killed the process twice ({cause})")
        return False
    item = worker.item.value
    if worker.seen[0] != item:
        worker.seen = (item, time.monotonic())
    elif item != NONE and worker.job is not None and time.monotonic() - worker.seen[1] > hang_s:
        worker.process.kill()
        worker.process.join()
        crashes.counts[item] = 1
        crashes.add(item, f"decoding it took more than {hang_s:.0f} s")
        return False
    return True
