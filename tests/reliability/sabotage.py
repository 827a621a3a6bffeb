"""What a process of `driver.py` has done to it before it trains: faults, recordings, and the controls' broken variants.

Each function is called with the run folder and its options, in the process of each rank, before training begins.
"""

import ctypes
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from epg.checkpoint import checkpoint, manifest, saving
from epg.distributed import rank, world_size
from epg.objectives.base import Losses
from epg.randomness import Draws
from epg.sharding import full
from epg.storage import artefact, files
from epg.training import learner, loop
from epg.training.learner import Learner, StepResult
from epg.training.loop import Trainer
from tests.helpers import change_losses

# Moments --------------------------------------------------------------------------------------------------------------


def kill_inside_a_write(folder: Path, at: int) -> None:
    """SIGKILL at write or sync number `at` of a checkpoint's tensors; 0 only counts them (`RUN.operations`)."""
    count = 0

    def hook(operation: files.Operation, action: Any) -> Any:
        nonlocal count
        of_weights = operation.kind in ("write", "fsync") and operation.path.suffix == ".safetensors"
        inside = of_weights and folder / "checkpoints" in operation.path.parents  # and not of the export
        count += inside
        if inside and at and count >= at:
            os.kill(os.getpid(), signal.SIGKILL)
        result = action()
        if not at:
            Path(f"{folder}.operations").write_text(str(count))
        return result

    files.hook = hook


def act(
    folder: Path,
    what: str,
    moment: str,
    step: int = 0,
    ranks: tuple[int, ...] = (0,),
    seconds: float = 3600,
    until: int = 10**9,
) -> None:
    """Does something once (a file remembers it) in these ranks, at a moment of step `step` (counted from 0).

    what: the name of a signal for the own process, `exception`, `exit` (code 0), `sleep`,
    `gil` (sleep without giving others the interpreter), or `crash`.
    moment: `joining` (before it meets the other processes), `startup` (before the data is opened), `building` (before
    the processes make their weights equal), `step` (between forward and backward pass), `micro` (before the
    second micro-batch), `boundary` (before step `step`), `preview` (of steps `step` to `until` - 1), or `save` (inside
    a write).
    """

    def now() -> None:
        number = int(os.environ.get("RANK", "0"))  # known before the process has joined the others
        done = Path(f"{folder}.acted-{number}")
        if number not in ranks or done.exists():
            return
        done.write_text(str(time.time()))
        if what.startswith("SIG"):
            os.kill(os.getpid(), getattr(signal, what))
            time.sleep(0.01)  # the interpreter delivers it between two instructions
        elif what == "sleep":
            time.sleep(seconds)
        elif what == "gil":  # nothing else of this process runs: no watchdog, no signal handler
            ctypes.PyDLL(None).sleep(int(seconds))
        elif what == "exit":
            os._exit(0)
        elif what == "crash":
            os._exit(9)
        else:
            raise RuntimeError("an exception for a test")

    _at(moment, step, now, until)


def _at(moment: str, step: int, now: Callable[[], None], until: int) -> None:
    """Calls `now` at that moment."""
    places = {"joining": "processes", "startup": "open_training_data", "building": "preview_for"}
    if moment in places:
        from epg import runs

        original = getattr(runs, places[moment])

        def first(*args: Any) -> Any:
            now()
            return original(*args)

        setattr(runs, places[moment], first)
    elif moment == "save":
        count = 0

        def hook(operation: files.Operation, action: Any) -> Any:
            nonlocal count
            count += operation.kind == "write"
            result = action()
            if count == 3:
                now()
            return result

        files.hook = hook
    elif moment == "preview":
        original_draw = Trainer._draw_preview

        def draw(self: Trainer, trackers: Any) -> None:
            if step <= self.step < until:
                now()
            original_draw(self, trackers)

        Trainer._draw_preview = draw  # type: ignore[method-assign]
    elif moment == "boundary":
        original_step = Trainer.train_step

        def train_step(self: Trainer, batches: Any) -> Any:
            if self.step == step:
                now()
            return original_step(self, batches)

        Trainer.train_step = train_step  # type: ignore[method-assign]
    else:
        original_passes, original_autocast = Learner._forward_backward, Learner.autocast
        passes: int | None = None  # outside the training of that step: passes for the log do not count

        def forward_backward(self: Learner, batches: Any) -> Any:
            nonlocal passes
            passes = 0 if self.step == step else None
            losses = original_passes(self, batches)
            passes = None
            return losses

        def autocast(self: Learner) -> Any:
            nonlocal passes
            if passes is not None:
                passes += 1
                if passes == (2 if moment == "micro" else 1):
                    now()
            return original_autocast(self)

        Learner._forward_backward = forward_backward  # type: ignore[method-assign]
        Learner.autocast = autocast  # type: ignore[method-assign]


def slow_disk(folder: Path, seconds: float, hang_at: int = -1) -> None:
    """Every operation of a checkpoint takes so long; number `hang_at` an hour."""
    count = 0

    def hook(operation: files.Operation, action: Any) -> Any:
        nonlocal count
        time.sleep(3600 if count == hang_at else seconds)
        count += 1
        return action()

    files.hook = hook


def slow_samples(folder: Path, seconds: float) -> None:
    """Every pass of the network takes so long when it is judged, and not when it is trained."""
    from epg.networks import EPG

    original = EPG.forward

    def forward(self: EPG, *inputs: Any, **more: Any) -> Any:
        if not self.training:
            time.sleep(seconds)
        return original(self, *inputs, **more)

    EPG.forward = forward  # type: ignore[method-assign]


def spoil_average(folder: Path, step: int) -> None:
    """The average, which only checkpoints and samples use, becomes NaN in the process that writes."""
    original = Trainer.train_step

    def train_step(self: Trainer, batches: Any) -> Any:
        if self.step == step and rank() == 0:
            next(iter(self.learner.ema.shadows["ema-0.99"].values())).fill_(float("nan"))
        return original(self, batches)

    Trainer.train_step = train_step  # type: ignore[method-assign]


def spoil_inside(folder: Path, **fault: Any) -> None:
    """Spoils what a layer gives in one step; see `inside.Spoiler`."""
    from tests.reliability.inside import Spoiler

    original = Trainer._train

    def train(self: Trainer) -> None:
        Spoiler(self.objective, **fault)
        original(self)

    Trainer._train = train  # type: ignore[method-assign]


def raise_loss(folder: Path, steps: tuple[int, ...], factor: float = 20.0) -> None:
    """The batches of these steps have so many times their loss, and gradient, whenever they are computed."""
    original = Trainer._train

    def train(self: Trainer) -> None:
        def raised(step: int, losses: Losses) -> Losses:
            by = factor if step in steps else 1.0
            return {name: value if "/" in name else value * by for name, value in losses.items()}

        change_losses(self.objective, raised)
        original(self)

    Trainer._train = train  # type: ignore[method-assign]


def flip_bit(folder: Path, step: int, parameter: int, bit: int) -> None:
    """Flips one bit of the largest number in the gradient of the so-many-th parameter, once."""
    original = Learner._forward_backward

    def forward_backward(self: Learner, batches: Any) -> Any:
        losses = original(self, batches)
        if self.step == step:
            gradients = [p.grad for p in self.parameters if p.grad is not None]
            numbers = gradients[parameter % len(gradients)].view(-1)
            numbers[numbers.abs().argmax()].view(torch.int32).bitwise_xor_(1 << bit)
        return losses

    Learner._forward_backward = forward_backward  # type: ignore[method-assign]


def leave_out(folder: Path, step: int) -> None:
    """One step is counted and not taken: its batch is read, and that is all."""
    original = Trainer.train_step

    def train_step(self: Trainer, batches: Any) -> Any:
        if self.step != step:
            return original(self, batches)
        self.learner.step += 1
        return StepResult({}, 0.0)

    Trainer.train_step = train_step  # type: ignore[method-assign]


def in_a_worker(folder: Path, what: str, image: int = 3) -> None:
    """A loader process meets a fault at its so-many-th image: a signal, or MemoryError."""
    from epg.data.dataset import SourceDataset

    uncached(folder)
    original, parent, count = SourceDataset.__getitem__, os.getpid(), 0

    def getitem(self: SourceDataset, index: int) -> Any:
        nonlocal count
        if os.getpid() != parent:
            count += 1
            if count == image:
                with Path(f"{folder}.fault").open("a") as stream:
                    stream.write(f"{time.time()} {self.describe(index)}\n")
                if what == "MemoryError":
                    raise MemoryError
                os.kill(os.getpid(), getattr(signal, what))
        return original(self, index)

    SourceDataset.__getitem__ = getitem  # type: ignore[method-assign]


# Recordings -----------------------------------------------------------------------------------------------------------


def record(folder: Path, gradients: tuple[int, ...] = ()) -> None:
    """Writes which samples every step had (`RUN.samples-RANK`), and the whole gradient of these steps."""
    original = Learner._forward_backward

    def forward_backward(self: Learner, batches: Any) -> Any:
        with Path(f"{folder}.samples-{rank()}").open("a") as stream:
            for batch in batches:
                stream.write(json.dumps([self.step, batch.first, batch.indices.tolist()]) + "\n")
        losses = original(self, batches)
        if self.step in gradients:
            found = {n: full(p.grad) for n, p in self.objective.named_parameters() if p.grad is not None}
            if rank() == 0:
                save_file({n: g.contiguous() for n, g in found.items()}, f"{folder}.gradient-{self.step}")
        return losses

    Learner._forward_backward = forward_backward  # type: ignore[method-assign]


def watch(folder: Path, every: int) -> None:
    """Writes step, resident bytes of this process and of its workers, open files, threads, and what lies in the run
    folder (`RUN.usage`)."""
    original = Trainer.train_step

    def usage() -> list[int]:
        own = Path("/proc/self")
        pids = (own / f"task/{os.getpid()}/children").read_text().split()
        page = os.sysconf("SC_PAGE_SIZE")
        resident = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in ("self", *pids)) * page
        kept = list(os.listdir(folder / "checkpoints")) if (folder / "checkpoints").exists() else []
        size = (folder / "log.jsonl").stat().st_size if (folder / "log.jsonl").exists() else 0
        return [resident, len(list((own / "fd").iterdir())), len(list((own / "task").iterdir())), len(kept), size]

    def train_step(self: Trainer, batches: Any) -> Any:
        if self.step % every == 0:
            with Path(f"{folder}.usage").open("a") as stream:
                stream.write(json.dumps([self.step, os.getpid(), *usage()]) + "\n")
        return original(self, batches)

    Trainer.train_step = train_step  # type: ignore[method-assign]


def hoard(folder: Path) -> None:
    """Keeps the losses of every step, as a list that somebody forgot does."""
    original, kept = Learner._forward_backward, []

    def forward_backward(self: Learner, batches: Any) -> Any:
        losses = original(self, batches)
        kept.append([value.clone() for value in losses.values()] + [batches[0].images.clone()])
        return losses

    Learner._forward_backward = forward_backward  # type: ignore[method-assign]


def uncached(folder: Path) -> None:
    """The images are read by worker processes, though they would fit into memory."""
    from epg.data import configured

    configured.CACHE_BYTES = 0


# Controls -------------------------------------------------------------------------------------------------------------


def naive(folder: Path) -> None:
    """Checkpoints straight into their final folder, nothing synced, nothing checked; the newest is taken as it is."""

    def save(folder: Path, step: int, tensors: Any, state: Any, keep: int, keep_every: int = 0) -> Path:
        final = folder / f"step-{step:08d}"
        final.mkdir(parents=True, exist_ok=True)
        (final / checkpoint.STATE).write_text(json.dumps({"format": manifest.FORMAT, "step": step, **state}))
        for name, group in tensors.items():
            file = final / f"{name}.safetensors"
            file.unlink(missing_ok=True)
            artefact.write_tensors(file, group)
        saving.prune(folder, final, keep)
        return final

    def newest(folder: Path) -> Any:
        for path in reversed(checkpoint.listing(folder)):
            state = json.loads((path / checkpoint.STATE).read_text())
            entry = manifest.FileEntry(sha256="", size=0)
            files = {file.name: entry for file in path.glob("*.safetensors")}
            versions = {"epg": "0"}
            made = manifest.Manifest(
                format=manifest.FORMAT, files=files, config="", data="", versions=versions, threads=1, digest=path.name
            )
            return checkpoint.Checkpoint(path, state, made)
        return None

    saving.save, checkpoint.newest = save, newest
    saving.is_intact = lambda path: True


def nan_to_num(folder: Path) -> None:
    """Whatever is not finite in a gradient becomes 0, and the step is taken."""

    original = Learner._flags

    def fine(self: Learner, loss: Any, norm: Any) -> Any:
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad.nan_to_num_(0, 0, 0)
        return torch.zeros_like(original(self, loss, norm))

    Learner._flags = fine  # type: ignore[method-assign]


def noise_by_rank(folder: Path) -> None:
    """Every process draws its own numbers, whatever part of the batch it has."""
    normal, uniform = Draws.normal, Draws.uniform

    def own(purpose: str) -> str:
        return f"{purpose} of rank {rank()} of {world_size()}"

    Draws.normal = lambda self, purpose, shape=(): normal(self, own(purpose), shape)  # type: ignore[method-assign]
    Draws.uniform = lambda self, purpose, shape=(): uniform(self, own(purpose), shape)  # type: ignore[method-assign]


def uneven_shares(folder: Path) -> None:
    """Rank 0 gets twice as many images as rank 1, and each takes the mean of its own."""
    from epg import runs
    from epg.data.loading import loader

    original = loader.BatchLoader.__init__

    def init(self: Any, dataset: Any, **options: Any) -> None:
        count, options["world_size"] = options["world_size"], 1
        number, options["rank"] = options["rank"], 0
        original(self, dataset, **options)
        if count == 2:
            third = options["batch_size"] // 3
            size = third * (2 if number == 0 else 1)
            self.shape = (size, *self.shape[1:])
            self.firsts = range(number * 2 * third, number * 2 * third + 1)

    loader.BatchLoader.__init__ = init  # type: ignore[method-assign]
    runs.refuse_uneven_processes = loop.refuse_uneven_processes = lambda config, processes: None


def schedule_by_process(folder: Path) -> None:
    """The learning rate advances once per process and step."""
    original = learner.learning_rate
    learner.learning_rate = lambda step, *rest: original(step * world_size(), *rest)


def global_generator(folder: Path) -> None:
    """Noise comes from torch's global generator, seeded once: what restoring its state alone would have to save."""
    torch.manual_seed(0)
    Draws.normal = lambda self, purpose, shape=(): torch.randn(self.count, *shape, dtype=self.dtype)  # type: ignore


def unsorted_names(folder: Path) -> None:
    """Image files in the order in which a set has their names, which changes with PYTHONHASHSEED."""
    from epg.data.sources import listing

    def by_hash(values: Any, key: Callable[[Any], Any] = lambda value: value) -> list[Any]:
        return sorted(values, key=lambda value: hash(key(value)))

    listing.sorted = by_hash  # type: ignore[attr-defined]
