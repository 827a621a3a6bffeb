"""Processes that do the work of preparing and of loading, where one may die or hang and is named with its image."""

import mmap
import multiprocessing as mp
import os
import signal
import tempfile
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import DupFd
from multiprocessing.util import Finalize
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epg.errors import UserError

NONE = -1
LOOK_S = 0.5  # how often silent workers are looked at
PARENT_S = 2.0  # how often an idle worker looks whether its parent still lives

Begin = Callable[[int], None]
"""To be called with the number of each image before it is worked on."""
Work = Callable[[Any, Begin], Any]


class SharedMemory:
    """`size` bytes that this process and those it starts have in common, freed with the last of them.

    It does not lie in /dev/shm: containers limit that to 64 MB, and whoever exceeds it is killed without a word.
    """

    def __init__(self, size: int) -> None:
        descriptor = os.memfd_create("epg-data") if hasattr(os, "memfd_create") else _unnamed_file()
        os.ftruncate(descriptor, size)
        self._map(descriptor, size)

    def _map(self, descriptor: int, size: int) -> None:
        self.descriptor = descriptor
        Finalize(self, os.close, args=(descriptor,))
        self.bytes: NDArray[np.uint8] = np.frombuffer(mmap.mmap(descriptor, size), np.uint8)

    def __getstate__(self) -> tuple[Any, int]:
        return DupFd(self.descriptor), len(self.bytes)

    def __setstate__(self, state: tuple[Any, int]) -> None:
        self._map(state[0].detach(), state[1])


def _unnamed_file() -> int:
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class Lost(Exception):  # noqa: N818
    """A worker died, or hangs, at an image; None: before its first."""

    def __init__(self, worker: int, image: int | None, cause: str, hangs: bool) -> None:
        super().__init__(cause)
        self.worker, self.image, self.hangs = worker, image, hangs


@dataclass(eq=False)
class Call:
    """A task and what became of it."""

    task: Any
    worker: int
    done: bool = False
    value: Any = None

    def result(self) -> Any:
        """Raises what the work raised."""
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


@dataclass
class _Member:
    process: Any
    pipe: Connection
    calls: deque[Call] = field(default_factory=deque)
    begun: int = 0
    since: float = 0.0  # when it last began an image, or was first waited for


class Crew:
    """`count` processes that do `work(task, begin)`, each its tasks in order.

    They ignore SIGINT, SIGTERM and SIGUSR1, which are the parent's to answer, and end with it. `timeout_s` is what one
    image may take while the crew is listened to. `method` starts them: "spawn" where the parent may have threads.
    """

    def __init__(self, work: Work, count: int, timeout_s: float, method: str | None = None):
        self.work, self.timeout_s = work, timeout_s
        self.context: Any = mp.get_context(method)
        self.memory = SharedMemory(16 * count)
        self.members: list[_Member] = []
        self.looked = 0.0
        # Before multiprocessing's own clean-up, which would wait for ever for a process that ignores SIGTERM.
        self.close = Finalize(self, _kill, args=(self.members,), exitpriority=10)
        for number in range(count):
            self.members.append(self._start(number))

    def begun(self) -> int:
        """Images begun so far, by all of them."""
        return int(self.memory.bytes.view(np.int64)[::2].sum())

    def idle(self) -> int:
        """Workers without a task."""
        return sum(not member.calls for member in self.members)

    def send(self, task: Any) -> Call:
        """Give a task to the least busy. Raises Lost."""
        number = min(range(len(self.members)), key=lambda k: len(self.members[k].calls))
        member, call = self.members[number], Call(task, number)
        member.calls.append(call)
        try:
            member.pipe.send(task)
        except OSError:
            raise self._died(number) from None
        return call

    def listen(self) -> None:
        """Take in the results that are there, or come within `LOOK_S`. Raises Lost, for one worker at a time."""
        ready = wait([end for m in self.members for end in (m.pipe, m.process.sentinel)], timeout=LOOK_S)
        now = time.monotonic()
        fresh = now - self.looked > 4 * LOOK_S  # nobody listened, or this process was stopped itself
        self.looked = now
        for number, member in enumerate(self.members):
            try:
                while member.pipe in ready and member.pipe.poll():
                    value = member.pipe.recv()
                    call = member.calls.popleft()
                    call.value, call.done, member.since = value, True, now
            except (EOFError, OSError):
                raise self._died(number) from None
            if member.process.sentinel in ready:
                raise self._died(number)
            begun = int(self._progress(number)[0])
            if fresh or begun != member.begun or not member.calls:
                member.begun, member.since = begun, now
            elif now - member.since > self.timeout_s:
                raise Lost(number, self._image(number), f"nothing for {self.timeout_s:g} s", hangs=True)

    def replace(self, number: int) -> list[Call]:
        """Another process in the place of a lost one, and the tasks that it had not done."""
        member = self.members[number]
        _kill([member])
        self.members[number] = self._start(number)
        return list(member.calls)

    def _start(self, number: int) -> _Member:
        self._progress(number)[1] = NONE
        ours, theirs = self.context.Pipe()
        # Told, as the parent may be gone before the worker looks; of a fork server only the worker itself knows.
        parent = None if self.context.get_start_method() == "forkserver" else os.getpid()
        args = (self.work, theirs, self.memory, number, parent)
        process = self.context.Process(target=_serve, args=args, daemon=True)
        process.start()
        theirs.close()
        return _Member(process, ours, since=time.monotonic())

    def _progress(self, number: int) -> NDArray[np.int64]:
        """(2,) written by the worker: images begun, and the one in work."""
        return self.memory.bytes[16 * number : 16 * number + 16].view(np.int64)

    def _image(self, number: int) -> int | None:
        image = int(self._progress(number)[1])
        return None if image == NONE else image

    def _died(self, number: int) -> Lost:
        process = self.members[number].process
        process.join(LOOK_S)
        code = process.exitcode
        cause = signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
        return Lost(number, self._image(number), cause, hangs=False)


def _kill(members: list[_Member]) -> None:
    """End processes at once, stopped ones too: they hold nothing that needs care."""
    for member in members:
        member.process.kill()
    for member in members:
        member.process.join()
        member.pipe.close()
    members.clear()


def _serve(work: Work, pipe: Connection, memory: SharedMemory, number: int, started_by: int | None) -> None:
    """The life of a worker: tasks in, results or errors out. Ends with its parent."""
    for kind in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(kind, signal.SIG_IGN)
    parent = started_by or os.getppid()
    progress = memory.bytes[16 * number : 16 * number + 16].view(np.int64)

    def begin(image: int) -> None:
        if os.getppid() != parent:
            os._exit(1)
        progress[1] = image
        progress[0] += 1

    try:
        while True:
            while not pipe.poll(PARENT_S):
                if os.getppid() != parent:
                    os._exit(1)
            pipe.send(_outcome(work, pipe.recv(), begin))
    except (EOFError, OSError):  # the parent is gone
        os._exit(1)


def _outcome(work: Work, task: Any, begin: Begin) -> Any:
    try:
        return work(task, begin)
    except UserError as error:
        return type(error)(str(error))
    except OSError as error:
        return error
    except Exception as error:  # a bug: the traceback would be lost on the way
        return RuntimeError(f"{error}\n{traceback.format_exc()}")
