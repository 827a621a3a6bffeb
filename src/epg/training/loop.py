"""The training loop: takes any objective, knows nothing of stages."""

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from epg.config import RunConfig
from epg.data.dataset import ImageDataset
from epg.data.loader import Batch, BatchLoader
from epg.distributed import all_reduce_sum, rank, world_size
from epg.errors import ArtefactError, DivergedError, InterruptedRunError, UserError
from epg.objectives.base import Objective
from epg.training import checkpoint
from epg.training.ema import EMA
from epg.training.optim import learning_rate, make_optimizer, optimizer_tensors, restore_optimizer
from epg.training.tracking import JSONLTracker, TensorBoardTracker, TerminalTracker, Tracker

Preview = Callable[[Path], None]
"""Draws a sample grid with the network's present weights into a PNG file."""


@dataclass
class Meter:
    """Means of the loss terms, and rates, since the last log line."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    steps: int = 0
    waited: float = 0.0
    started: float = field(default_factory=time.perf_counter)

    def add(self, losses: dict[str, Tensor], waited: float) -> None:
        for name, value in losses.items():
            self.sums[name] = self.sums[name] + value.detach() if name in self.sums else value.detach().clone()
        self.steps += 1
        self.waited += waited

    def means(self, batch_size: int) -> dict[str, float]:
        elapsed = time.perf_counter() - self.started
        terms = {name: float(all_reduce_sum(value)) / self.steps / world_size() for name, value in self.sums.items()}
        rates = {"images_per_second": self.steps * batch_size / elapsed, "data_wait": self.waited / elapsed}
        return {**terms, **rates}


class Trainer:
    """Trains `objective` on `dataset` into the run folder `folder`; running it again continues where it was.

    Everything random is keyed by (seed, step, sample), so what is restored is weights, averages, optimizer and step.

    Raises:
        DivergedError: the loss or the gradient is not finite. Nothing non-finite is written.
        InterruptedRunError: SIGTERM or SIGINT came; a checkpoint of the last completed step is on disk.
    """

    def __init__(
        self,
        objective: Objective,
        dataset: ImageDataset,
        config: RunConfig,
        folder: Path,
        preview: Preview | None = None,
    ) -> None:
        self.config, self.dataset, self.folder, self.preview = config, dataset, folder, preview
        refuse_uneven_processes(config, world_size())
        self.device = pick_device(config.training.device)
        self.objective = objective.to(self.device).train()
        if config.training.compile:
            compile_blocks(self.objective)
        self.wrapped = wrap(self.objective)
        self.optimizer = make_optimizer(self.objective, config.optimizer)
        self.ema = EMA(self.objective.network, config.training.ema)
        self.step = 0
        self.stop_signal: int | None = None

    # The loop -------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Trains to `config.training.steps`, resuming from the newest valid checkpoint in the run folder."""
        self.restore()
        training = self.config.training
        if self.step >= training.steps:
            return
        loader = BatchLoader(
            self.dataset,
            batch_size=training.batch_size,
            seed=self.config.seed,
            start_step=self.step,
            rank=rank(),
            world_size=world_size(),
            micro_batch=training.micro_batch,
            workers=self.config.data.workers,
            pin_memory=self.device.type == "cuda",
        )
        with self._signals(), self._trackers() as (trackers, terminal):
            meter = Meter()
            batches = iter(loader)
            while self.step < training.steps:
                waiting = time.perf_counter()
                micro_batches = next(batches)
                waited = time.perf_counter() - waiting
                losses, norm, lr = self.train_step(micro_batches)
                meter.add({**losses, "grad_norm": norm}, waited)
                if terminal:
                    terminal.advance(self.step)
                self._after_step(trackers, meter, lr)
                if meter.steps == training.log_every or self.step % training.log_every == 0:
                    meter = Meter()

    def train_step(self, micro_batches: Sequence[Batch]) -> tuple[dict[str, Tensor], Tensor, float]:
        """One optimizer step: mean losses of this process, gradient norm, learning rate."""
        total: dict[str, Tensor] = {}
        self.optimizer.zero_grad(set_to_none=True)
        for i, batch in enumerate(micro_batches):
            last = i == len(micro_batches) - 1
            sync = contextlib.nullcontext() if last else no_sync(self.wrapped)
            with sync:
                with self._autocast():
                    losses = self.wrapped(batch.to(self.device), self.step)
                (losses["loss"] / len(micro_batches)).backward()
            for name, value in losses.items():
                total[name] = total.get(name, 0) + value.detach() / len(micro_batches)
        clip = self.config.optimizer.clip
        parameters = [p for p in self.objective.parameters() if p.requires_grad]
        norm = torch.nn.utils.clip_grad_norm_(parameters, math.inf if clip is None else clip)
        self._refuse_non_finite(total, norm)
        lr = learning_rate(
            self.step, self.config.training.steps, self.config.optimizer, self.config.training.batch_size
        )
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.objective.after_step()
        self.ema.update()
        self.step += 1
        return total, norm, lr

    def _refuse_non_finite(self, losses: dict[str, Tensor], norm: Tensor) -> None:
        """The gradients are the same on every process once reduced, so every process stops at the same step."""
        if torch.isfinite(norm):
            return
        values = ", ".join(f"{name} {float(value):.4g}" for name, value in losses.items())
        raise DivergedError(
            f"step {self.step}: the gradient is not finite (norm {float(norm)}; {values}). Nothing of this step was "
            f"kept; checkpoints before it are intact in {self.folder}. Lower --optimizer.lr, set --optimizer.clip, "
            "or use --training.precision fp32, and run again."
        )

    def _after_step(self, trackers: list[Tracker], meter: Meter, lr: float) -> None:
        training, last = self.config.training, self.step == self.config.training.steps
        if self.step % training.log_every == 0 or last:
            numbers = {**meter.means(training.batch_size), "lr": lr}
            for tracker in trackers:
                tracker.log(self.step, numbers)
        if self.preview and training.preview_every and (self.step % training.preview_every == 0 or last):
            self._draw_preview(trackers)
        if self.stop_signal is not None or self.step % training.checkpoint_every == 0 or last:
            self.save()
        if self.stop_signal is not None and not last:
            raise InterruptedRunError(
                f"stopped by {signal.Signals(self.stop_signal).name} after step {self.step}, which is saved in "
                f"{self.folder}. Run the same command again to continue."
            )

    def _draw_preview(self, trackers: list[Tracker]) -> None:
        if rank() != 0 or self.preview is None:
            return
        file = self.folder / "previews" / f"step-{self.step:08d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        self.objective.eval()
        with self.ema.applied(self.config.training.ema[0]) if self.config.training.ema else contextlib.nullcontext():
            self.preview(file)
        self.objective.train()
        for tracker in trackers:
            tracker.picture(self.step, file)

    # State ----------------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Writes a checkpoint of the completed step (process 0 only)."""
        if rank() != 0:
            return
        tensors = {
            "model": checkpoint.clone(self.objective.state_dict()),
            "optimizer": checkpoint.clone(optimizer_tensors(self.objective, self.optimizer)),
            **{f"ema-{d}": checkpoint.clone(self.ema.state_dict(d)) for d in self.ema.shadows},
        }
        state = {
            "config": self.config.model_dump(mode="json"),
            "class_names": list(self.dataset.class_names),
            "data": self.dataset.fingerprint(),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
        }
        checkpoint.save(self.folder / "checkpoints", self.step, tensors, state, self.config.training.keep)

    def restore(self) -> None:
        """Continues from the newest valid checkpoint of the run folder, if there is one."""
        found = checkpoint.newest(self.folder / "checkpoints")
        if found is None:
            return
        if found.state["data"] != self.dataset.fingerprint():
            raise ArtefactError(
                f"{self.folder}: was trained on other images than --data.source {self.config.data.source}. "
                "Choose another --out, or the data it began with."
            )
        load_strictly(self.objective, found.tensors("model"), found.path)
        for decay in self.ema.shadows:
            self.ema.load(decay, {k: v.to(self.device) for k, v in found.tensors(f"ema-{decay}").items()})
        try:
            restore_optimizer(self.objective, self.optimizer, found.tensors("optimizer"))
        except KeyError as error:
            raise ArtefactError(f"{found.path}: the optimizer state lacks {error}") from None
        self.step = found.step

    # Surroundings ---------------------------------------------------------------------------------------------------

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        enabled = self.config.training.precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16) if enabled else contextlib.nullcontext()

    @contextlib.contextmanager
    def _trackers(self) -> Iterator[tuple[list[Tracker], TerminalTracker | None]]:
        if rank() != 0:
            yield [], None
            return
        terminal = TerminalTracker(self.config.stage, self.config.training.steps, self.step)
        trackers: list[Tracker] = [
            JSONLTracker(self.folder, self.step),
            TensorBoardTracker(self.folder, self.step),
            terminal,
        ]
        try:
            yield trackers, terminal
        finally:
            for tracker in trackers:
                tracker.close()

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT ask the loop to save and stop after the step; a second one acts at once."""
        previous: dict[int, Any] = {}

        def handle(number: int, frame: FrameType | None) -> None:
            self.stop_signal = number
            signal.signal(number, previous[number])

        try:
            if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
                previous |= {n: signal.signal(n, handle) for n in (signal.SIGTERM, signal.SIGINT)}
            yield
        finally:
            for n, handler in previous.items():
                signal.signal(n, handler)


def refuse_uneven_processes(config: RunConfig, processes: int) -> None:
    """Random numbers are drawn in blocks of the global batch, which no process may cut."""
    batch_size, block = config.training.batch_size, config.random_block
    if batch_size % (processes * block):
        raise UserError(
            f"--training.batch-size {batch_size}: on {processes} processes each must get a multiple of {block} images, "
            "the block in which random numbers are drawn. Choose another batch size or number of processes."
        )


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA, then Apple's GPU, then the CPU; with several processes each takes the GPU of its local rank."""
    if name != "auto":
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda", rank() % torch.cuda.device_count())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def wrap(objective: Objective) -> torch.nn.Module:
    """The objective itself, or DDP around it when several processes train."""
    if world_size() == 1:
        return objective
    return DistributedDataParallel(objective, broadcast_buffers=False)


def no_sync(module: torch.nn.Module) -> contextlib.AbstractContextManager[Any]:
    """Leaves out the gradient exchange of a micro-batch that is not the last."""
    return module.no_sync() if isinstance(module, DistributedDataParallel) else contextlib.nullcontext()


def compile_blocks(module: torch.nn.Module) -> None:
    """Compiles each transformer block: short compile times, and the rest stays plain Python."""
    for child in module.modules():
        if type(child).__name__ in ("EncoderBlock", "DecoderBlock"):
            child.compile()


def load_strictly(module: torch.nn.Module, tensors: dict[str, Tensor], where: Path) -> None:
    """Loads a complete state dict; anything missing, unexpected or of another shape is an error that names it."""
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise ArtefactError(f"{where}: not a checkpoint of this configuration. {error}") from None
