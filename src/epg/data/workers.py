"""Processes that decode ahead into a ring of shared memory, and what happens when one of them dies or hangs."""

import multiprocessing as mp
import os
import signal
import time
import traceback
from collections import deque
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.util import Finalize
from typing import Any

import numpy as np
import torch

from epg.data.reading import Reader, Reading
from epg.data.ring import NONE, Ring
from epg.errors import DataError, UserError

CHUNK = 32  # images per task: several workers share a batch, and the first one is there soon
LOOK_S = 0.5  # how often a silent worker is looked at
PARENT_S = 2.0  # how often a worker looks whether its parent still lives

Task = tuple[int, int, int, int]  # slot, place of the first image in it, position in the stream, images


@dataclass
class _Chunk:
    worker: int
    result: Reading | Exception | None = None


@dataclass
class Pending:
    """A batch in work."""

    slot: int
    chunks: list[_Chunk]


@dataclass
class _Worker:
    process: Any
    pipe: Connection
    queue: deque[_Chunk] = field(default_factory=deque)


class Workers:
    """`count` processes that fill slots of `ring` with what `reader` reads.

    Which of them reads a sample changes nothing but the time. They ignore SIGINT, SIGTERM and SIGUSR1, which are the
    parent's to answer, and end with it. `timeout_s` is what one image may take.
    """

    def __init__(self, reader: Reader, ring: Ring, count: int, timeout_s: float) -> None:
        self.reader, self.ring, self.timeout_s = reader, ring, timeout_s
        context = mp.get_context()
        self.workers: list[_Worker] = []
        # Before multiprocessing's own clean-up, which would wait for ever for a process that ignores SIGTERM.
        self.close = Finalize(self, _kill, args=(self.workers,), exitpriority=10)
        for number in range(count):
            ring.progress(number)[:] = 0, NONE
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(reader, ring, number, theirs), daemon=True)
            process.start()
            theirs.close()
            self.workers.append(_Worker(process, ours))

    def start(self, position: int) -> Pending:
        """Have the samples from `position` on read into a free slot."""
        slot, size = self.ring.free.popleft(), self.ring.shape[0]
        pending = Pending(slot, [])
        for place in range(0, size, CHUNK):
            number = min(range(len(self.workers)), key=lambda k: len(self.workers[k].queue))
            chunk = _Chunk(number)
            task: Task = (slot, place, position + place, min(CHUNK, size - place))
            try:
                self.workers[number].pipe.send(task)
            except OSError:
                raise self._died(number) from None
            self.workers[number].queue.append(chunk)
            pending.chunks.append(chunk)
        return pending

    def finish(self, pending: Pending) -> Reading:
        """Wait until the slot is filled. Raises what reading raised, DataError for a worker that died or hangs."""
        readings = [self._wait_for(chunk) for chunk in pending.chunks]
        indices = np.concatenate([reading.indices for reading in readings])
        return Reading(indices, [damaged for reading in readings for damaged in reading.damaged])

    def _wait_for(self, chunk: _Chunk) -> Reading:
        progress = self.ring.progress(chunk.worker)
        begun, since = int(progress[0]), time.monotonic()
        while chunk.result is None:
            self._listen()
            if progress[0] != begun:
                begun, since = int(progress[0]), time.monotonic()
            elif chunk.result is None and time.monotonic() - since > self.timeout_s:
                raise DataError(
                    f"loader process {chunk.worker} hangs {self._at_work(chunk.worker)}: nothing for "
                    f"{self.timeout_s:g} s. If storage is that slow, raise --data.timeout or lower --data.workers"
                )
        if isinstance(chunk.result, Exception):
            raise chunk.result
        return chunk.result

    def _listen(self) -> None:
        """Take in the results that are there, or come within `LOOK_S`."""
        ready = wait([end for w in self.workers for end in (w.pipe, w.process.sentinel)], timeout=LOOK_S)
        for number, worker in enumerate(self.workers):
            try:
                while worker.pipe in ready and worker.pipe.poll():
                    result = worker.pipe.recv()
                    worker.queue.popleft().result = result
            except (EOFError, OSError):
                raise self._died(number) from None
            if worker.process.sentinel in ready:
                raise self._died(number)

    def _died(self, number: int) -> DataError:
        process = self.workers[number].process
        process.join(LOOK_S)
        code = process.exitcode
        cause = signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
        return DataError(
            f"loader process {number} died ({cause}) {self._at_work(number)}. If memory ran out, lower --data.workers; "
            "if it happens again at this image, remove it"
        )

    def _at_work(self, number: int) -> str:
        index = int(self.ring.progress(number)[1])
        return "before its first image" if index == NONE else f"at {self.reader.dataset.describe(index)}"


def _kill(workers: list[_Worker]) -> None:
    """End the processes at once, stopped ones too: they hold nothing that needs care."""
    for worker in workers:
        worker.process.kill()
    for worker in workers:
        worker.process.join()
        worker.pipe.close()
    workers.clear()


def _serve(reader: Reader, ring: Ring, number: int, pipe: Connection) -> None:
    """The life of a worker: tasks in, readings or errors out."""
    for kind in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(kind, signal.SIG_IGN)
    torch.set_num_threads(1)
    parent, progress = os.getppid(), ring.progress(number)

    def begin(index: int) -> None:
        progress[1] = index
        progress[0] += 1

    try:
        while True:
            while not pipe.poll(PARENT_S):
                if os.getppid() != parent:
                    os._exit(1)
            slot, place, position, count = pipe.recv()
            pipe.send(_work(reader, position, ring.pixels(slot)[place : place + count], begin))
    except (EOFError, OSError):  # the parent is gone
        os._exit(1)


def _work(reader: Reader, position: int, pixels: Any, begin: Any) -> Reading | Exception:
    try:
        return reader.read(position, pixels, begin)
    except UserError as error:
        return type(error)(str(error))
    except Exception as error:  # a bug: the traceback would be lost on the way
        return RuntimeError(f"{error}\n{traceback.format_exc()}")
