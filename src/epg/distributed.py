"""Several processes as one: joining them, failing together, a few collectives that are the identity in a single one."""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from epg.errors import PeerError, UserError
from epg.memory import keep_freed_memory

SLACK = 60.0  # seconds that a collective waits longer than the watchdog, which says more about a hang
FOR_EVER = 30 * 24 * 3600.0
MOMENT = 1.0  # seconds that the ends of several processes, or their stop signals, lie apart at most


def world_size() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process among them, 0 first."""
    return dist.get_rank() if dist.is_initialized() else 0


def local_device(count: int) -> int:
    """Which of the `count` devices that this process sees is its own: by its place on the machine and not among all; a
    process that is shown a single one takes that."""
    return int(os.environ.get("LOCAL_RANK", str(rank()))) % count


def several() -> bool:
    """Whether a launcher started this process as one of several, joined or not."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def tells() -> bool:
    """Whether this process is the first, before they are joined and after too: the one that says what came of it."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def processes(timeout: float = 600.0, told: Callable[[], object] = lambda: False) -> Iterator[None]:
    """Joins the other processes when started by torchrun (or anything that sets its variables).

    Args:
        timeout: seconds without a completed step after which the watchdog ends a process (0: never). A collective
            gives up a minute after it.
        told: whether this process was told to stop, by a signal whose handler raises nothing.
    """
    if not several() or dist.is_initialized():
        yield
        return
    everybody: list[Any] = []
    try:
        everybody = join(timedelta(seconds=timeout + SLACK if timeout else FOR_EVER))
        yield
    except UserError:
        raise
    except Exception as error:
        _wait_a_moment(told)
        for note in missing(everybody):
            error.add_note(note)
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def join(limit: timedelta) -> list[Any]:
    """Meets the other processes; host and process id of each, by rank."""
    answering(lambda: _meet(limit))
    _take_device()
    everybody: list[Any] = [None] * world_size()
    dist.all_gather_object(everybody, (socket.gethostname(), os.getpid()))
    return everybody


def _take_device() -> None:
    """The current GPU, which every thread has for itself, becomes that of this process."""
    if torch.cuda.is_available():
        torch.cuda.set_device(local_device(torch.cuda.device_count()))


def _meet(limit: timedelta) -> None:
    _take_device()
    store, number, count = next(rendezvous("env://", timeout=limit))
    # After a restart torchrun's store still holds the addresses of the processes that died, which the new ones would
    # call. (On several machines the restarts are counted by machine: there TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 helps.)
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = dist.PrefixStore(f"attempt {attempt}", store)  # type: ignore[attr-defined]
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=limit)


def answering(action: Callable[[], None]) -> None:
    """Calls, in a thread of its own, what may wait in C++ for processes that never come: there no stop signal would be
    answered, and here it is."""
    done: Future[None] = Future()

    def call() -> None:
        try:
            action()
            done.set_result(None)
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=call, name="joining", daemon=True).start()
    done.result()


def _wait_a_moment(told: Callable[[], object]) -> None:
    """Connections close before a process has ended, and what told that one to stop may tell this one a moment later."""
    until = time.monotonic() + MOMENT
    while not told() and time.monotonic() < until:
        time.sleep(0.02)


def missing(everybody: Sequence[tuple[str, int]]) -> Iterator[str]:
    """What to say of processes on this machine that have ended: a collective that fails only knows an address."""
    for number, (host, pid) in enumerate(everybody):
        if host == socket.gethostname() and not _alive(pid):
            yield f"rank {number} (process {pid}) has ended, without an error of its own that could be seen from here"


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except ProcessLookupError:
        return False
    except OSError:  # there is no such file on this system
        return True


@contextmanager
def failing_together() -> Iterator[None]:
    """What fails inside the `with` in one process raises in all, so that none waits for one that is gone.

    Nothing inside may talk to the other processes. Raises PeerError, with the exit code of the first failure, in
    processes where nothing was wrong.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as found:
        error = found
    if world_size() > 1:
        own = None if error is None else (str(error), error.exit_code if isinstance(error, UserError) else 1)
        everywhere: list[Any] = [None] * world_size()
        try:
            dist.all_gather_object(everywhere, own)
        except RuntimeError:  # that the others have gone says less than what is wrong here
            if error is None:
                raise
        failed = next(((i, found) for i, found in enumerate(everywhere) if found is not None), None)
        if error is None and failed is not None:
            number, (text, exit_code) = failed
            raise PeerError(f"rank {number} failed: {text.splitlines()[0]}", exit_code)
    if error is not None:
        raise error


def agree(*flags: float, device: torch.device) -> list[float]:
    """The largest of each flag over all processes: every process then takes the same decision."""
    if world_size() == 1:
        return list(flags)
    return all_reduce_max(torch.tensor(flags, device=device)).tolist()


def all_reduce_max(x: Tensor) -> Tensor:
    """The largest over processes, in place."""
    if world_size() > 1:
        dist.all_reduce(x, op=dist.ReduceOp.MAX)
    return x


def from_first(value: Any) -> Any:
    """What the first process has, on every process."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


class _AllReduceSum(torch.autograd.Function):
    """Sum over processes; the gradient of a sum that every process uses is the sum of their gradients."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
        pass

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        grad = grad.clone()
        dist.all_reduce(grad)
        return grad


def all_reduce_sum(x: Tensor) -> Tensor:
    """Differentiable sum over processes."""
    return _AllReduceSum.apply(x) if world_size() > 1 else x


@torch.no_grad()
def all_gather(x: Tensor) -> Tensor:
    """Rows of every process, in the order of their ranks: (N, ...) -> (world_size * N, ...). Carries no gradient."""
    if world_size() == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(world_size())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA, then Apple's GPU, then the CPU; with several processes each takes the GPU of its local rank.
    For a CPU the process keeps what it frees from now on.

    Raises UserError for a device that this machine, or this version of torch, does not have.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        if name == "cuda":
            return torch.device(name, local_device(torch.cuda.device_count()))
    try:
        device = torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name}: cannot be used ({str(error).splitlines()[0]}). Try auto.") from error
    if device.type == "cpu":
        keep_freed_memory()
    return device
