"""The training loop: takes any objective, knows nothing of stages."""

import contextlib
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor

from epg.checkpoint.writer import CheckpointWriter
from epg.config.settings import RunConfig
from epg.data.loading.dataset import ImageDataset
from epg.data.loading.loader import Batch, BatchLoader
from epg.distributed import Answer, agree, all_reduce_max, full, pick_device, rank, world_size
from epg.errors import InterruptedRunError, PeerError
from epg.objectives.base import Objective
from epg.training.ema import EMA
from epg.training.faults import Buffers, LossScale, Skips, explain_non_finite
from epg.training.optim import learning_rate, make_optimizer
from epg.training.parallel import gradient_sync, refuse_uneven_processes, wrap
from epg.training.report import Reporter
from epg.training.resume import Start, warn_of_threads
from epg.training.signals import StopSignals
from epg.training.snapshot import capture, restore
from epg.training.tracking import Trackers, open_trackers, require_trackers
from epg.training.watchdog import Watchdog

WRITE_POLL = 0.2  # seconds between questions whether the checkpoint before is written
Preview = Callable[[Path], None]
"""Draws a sample grid with the network's present weights into a PNG file."""


Judge = Callable[[], dict[str, float]]
"""Numbers of the network's present weights that are cheap enough for the log."""


class Evaluation(Protocol):
    """Judges the network's present weights; every process calls all of it together."""

    def due(self, step: int) -> bool: ...

    def missing(self, step: int) -> bool:
        """Whether the evaluation of a step was interrupted."""
        ...

    def __call__(self, step: int, between: Callable[[], None], saved: Callable[[], bool]) -> dict[str, float]:
        """Numbers for the trackers. `between` is called now and then; `saved`, by all, waits for the checkpoint."""
        ...


@dataclass(frozen=True)
class StepResult:
    """Mean losses of this process and the gradient norm, and the learning rate. A step that is left out has no losses,
    which is known once the trainer has settled it."""

    losses: dict[str, Tensor]
    lr: float


@dataclass(frozen=True)
class Unsettled:
    """A step whose optimizer is queued, and whose flags are on their way to the host."""

    step: int
    batches: Sequence[Batch]
    result: StepResult
    flags: Answer


class Trainer:
    """Trains `objective` on `dataset` into the run folder `folder`, from the checkpoint `start` or from the beginning.

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
        start: Start | None = None,
        evaluation: Evaluation | None = None,
        judge: Judge | None = None,
    ) -> None:
        self.config, self.dataset, self.folder, self.start = config, dataset, folder, start
        self.preview, self.evaluation, self.judge = preview, evaluation, judge
        self.fingerprint = dataset.fingerprint()
        refuse_uneven_processes(config, world_size())
        require_trackers(config)
        self.device = pick_device(config.training.device)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.training.tf32
        self.objective = objective.to(self.device, objective.dtype).train()
        self.wrapped = wrap(self.objective, config)
        self.parameters = [p for p in self.objective.parameters() if p.requires_grad]
        self.buffers = Buffers(self.objective)
        self.optimizer = make_optimizer(self.objective, config.optimizer)
        self.ema = EMA(self.objective.network, config.training.ema, config.training.power_ema, config.training.steps)
        self.writer = CheckpointWriter(folder, config.training.keep, config.training.keep_every)
        self.loss_scale = LossScale(enabled=config.training.precision == "fp16")
        self.signals = StopSignals()
        self.watchdog = Watchdog(config.training.timeout)
        self.stop_signal = 0.0
        self.skips = Skips(config.training.max_nonfinite)
        self.step = 0
        self.unsettled: Unsettled | None = None

    # The loop -------------------------------------------------------------------------------------------------------

    def run(self, signals: StopSignals | None = None) -> None:
        """Trains to `config.training.steps`; `signals` are those that are caught already."""
        self.signals = signals or self.signals
        with self.signals.caught():
            self.signals.starting = False
            self.restore()
            if self.step < self.config.training.steps or self._evaluation_missing():
                self._train()
            self.skips.refuse_end(self.step, self.optimizer.updates(), self.folder)

    def _train(self) -> None:
        training = self.config.training
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
            max_damaged=self.config.data.max_damaged,
            timeout_s=self.config.data.timeout,
        )
        reporter = Reporter(self.config, self.device, self.step)
        # The last checkpoint before the trackers, which may wait for a network.
        with open_trackers(self.config, self.folder, self.step) as trackers, self.writer, self.watchdog.watching():
            if self._evaluation_missing():
                self._evaluate(trackers)
            batches = iter(loader)
            while self.step < training.steps:
                waiting = time.perf_counter()
                micro_batches = next(batches)
                waited = time.perf_counter() - waiting
                result = self.train_step(micro_batches)
                reporter.add(self.step - 1, result.losses, waited)
                trackers.advance(self.step)
                log = self.step % training.log_every == 0 or self.step == training.steps or self._judged()
                if log:
                    self.settle()
                    damaged = {"damaged": len(loader.damaged)} if loader.damaged else {}
                    numbers = {**damaged, **self._numbers(result, micro_batches[0])}
                    trackers.log(self.step, reporter.line(self.step, numbers))
                self._after_step(trackers)
                self.watchdog.beat(self.step)
                if log:
                    reporter.restart()

    def train_step(self, micro_batches: Sequence[Batch]) -> StepResult:
        """One optimizer step; left out, on every process together, where `training.leave_out` says so, or the loss, a
        gradient or a statistic is not finite: then nothing has changed but the number of the step, and fp16's loss
        scale where that was the cause.

        An accelerator is not waited for: the optimizer does nothing in a step that is left out, and everything else
        that depends on it follows in `settle`, when the optimizer is under way.

        Raises DivergedError after `training.max_nonfinite` steps in a row that were not finite.
        """
        training = self.config.training
        lr = learning_rate(self.step, training.steps, self.config.optimizer, training.batch_size)
        batches = [batch.to(self.device) for batch in micro_batches]
        self.settle()
        if self.step in training.leave_out:
            self.step += 1
            return StepResult({}, lr)
        self.buffers.keep()
        losses = self._forward_backward(batches)
        self.loss_scale.unscale(self.parameters)
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        result = StepResult({**losses, "grad_norm": full(norm)}, lr)
        flags = self._flags(losses["loss"], result.losses["grad_norm"])
        self.unsettled = Unsettled(self.step, batches, result, Answer(flags))
        if self.config.optimizer.clip is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.config.optimizer.clip, norm)
        self.optimizer.set_rate(lr)
        self.optimizer.step(bad=flags[:2].amax())
        if world_size() == 1:
            self.stop_signal = self.signals.received
        self.step += 1
        return result

    def settle(self) -> None:
        """Finishes the step before, as far as it depends on its flags: averages and targets follow the weights, or the
        step is left out. Called by all processes together, before anything uses what they hold."""
        step, self.unsettled = self.unsettled, None
        failed = float(self.writer.failed) if world_size() == 1 else 0.0
        if step is not None:
            bad_forward, bad_gradient, *others = step.flags.read()
            if others:
                self.stop_signal, failed = others
        if failed:
            self.writer.finish()  # raises in the process that writes
            raise PeerError("rank 0 could not write a checkpoint; it says why", int(failed))
        if step is None:
            return
        if bad_forward or bad_gradient:
            self._skip(step, scaled_too_much=not bad_forward)
            step.result.losses.clear()
            return
        self.objective.after_step()
        self.ema.update(step.step + 1)
        self.loss_scale.update(finite=True)
        self.skips.in_row = 0

    def _forward_backward(self, batches: Sequence[Batch]) -> dict[str, Tensor]:
        """Gradients of the mean loss of this process's micro-batches; means of the terms."""
        total: dict[str, Tensor] = {}
        self.optimizer.zero_grad(set_to_none=True)
        torch.compiler.cudagraph_mark_step_begin()
        for i, batch in enumerate(batches):
            with gradient_sync(self.wrapped, enabled=i == len(batches) - 1):
                with self._autocast():
                    losses = self.wrapped(batch, self.step)
                (losses["loss"] * (self.loss_scale.factor / len(batches))).backward()
            for name, value in losses.items():
                total[name] = total.get(name, 0) + value.detach() / len(batches)
        return total

    def _flags(self, loss: Tensor, norm: Tensor) -> Tensor:
        """1 where the forward passes, and where the gradients, of any process gave what is not finite; where there are
        several processes their stop signal, and whether a checkpoint failed, too."""
        fine = torch.stack([torch.isfinite(loss) & self.buffers.finite().to(loss.device), torch.isfinite(norm)])
        flags = 1 - fine.float()
        if world_size() == 1:
            return flags
        told = torch.tensor([self.signals.received, self.writer.failed], dtype=torch.float32)
        if self.device.type == "cuda":
            told = told.pin_memory()
        return all_reduce_max(torch.cat([flags, told.to(self.device, non_blocking=True)]))

    def _skip(self, step: Unsettled, scaled_too_much: bool) -> None:
        """Leaves the step out: overflow of fp16's gradients, which will be scaled less, or something to count."""
        losses = {name: float(value) for name, value in step.result.losses.items() if "/" not in name}
        norm = losses.pop("grad_norm")
        values = [f"{name} {value:.4g}" for name, value in losses.items()]
        numbers = "; ".join([f"gradient norm {norm:.4g}", ", ".join(values), *self.buffers.broken()[:3]])
        self.buffers.put_back()
        if scaled_too_much and self.loss_scale.update(finite=False):
            return

        def explain() -> str:
            try:
                return explain_non_finite(self.objective, step.batches, step.step, self._autocast)
            finally:
                self.buffers.put_back()

        self.skips.add(f"step {step.step}: not finite ({numbers})", explain, self.folder)

    def _numbers(self, result: StepResult, batch: Batch) -> dict[str, float | Tensor]:
        """What a log line says besides losses and rates. All processes call it together."""
        with self._autocast():
            diagnostics = self.objective.diagnostics(batch.to(self.device), self.step - 1)
        schedules = self.objective.schedule_numbers(self.step - 1)
        judgement: dict[str, float] = {}
        if self.judge is not None and self._judged():
            with self._averaged():
                judgement = self.judge()
        return {"lr": result.lr, "skipped": self.skips.total, **schedules, **diagnostics, **judgement}

    def _judged(self) -> bool:
        """Whether the log line of this step has the judge's numbers."""
        every = self.config.evaluation.linear_every
        return self.judge is not None and (self.step % every == 0 or self.step == self.config.training.steps)

    def _after_step(self, trackers: Trackers) -> None:
        """Saves first: whatever goes wrong in a preview or an evaluation, a restart goes on behind it."""
        training, last = self.config.training, self.step == self.config.training.steps
        shown = self.preview and training.preview_every and (self.step % training.preview_every == 0 or last)
        due = self.evaluation is not None and self.evaluation.due(self.step)
        if self.stop_signal or self.step % training.checkpoint_every == 0 or last or shown or due:
            self.save()
        self.writer.poll()
        if self.stop_signal and not last:
            self._stop()
        if shown:
            self._draw_preview(trackers)
        if due:
            self._evaluate(trackers)

    def _stop(self) -> NoReturn:
        raise InterruptedRunError(
            f"stopped by {signal.Signals(int(self.stop_signal)).name} after step {self.step}, which is saved in "
            f"{self.folder}. Run the same command again to continue."
        )

    def _evaluation_missing(self) -> bool:
        return self.evaluation is not None and self.evaluation.missing(self.step)

    def _evaluate(self, trackers: Trackers) -> None:
        """The checkpoint of this step is being written meanwhile, so that stopping here loses nothing."""
        assert self.evaluation is not None

        def between() -> None:
            self.watchdog.beat(self.step)
            (self.stop_signal,) = agree(self.signals.received, device=self.device)
            if self.stop_signal:
                self._stop()

        with self._averaged():
            numbers = self.evaluation(self.step, between, self._settled)
        trackers.evaluated(self.step, numbers)

    def _draw_preview(self, trackers: Trackers) -> None:
        """Every process draws, as sharded weights need them all; the first one writes."""
        assert self.preview is not None
        file = self.folder / "previews" / f"step-{self.step:08d}.png"
        with self._averaged():
            try:
                self.preview(file)
            except OSError as error:  # of the first process alone, which writes
                warnings.warn(f"{file}: no preview ({error.strerror}); training goes on", stacklevel=2)
        if file.exists():
            trackers.picture(self.step, file)

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[None]:
        """Inside the `with` the network has its averaged weights, to be judged; whatever it computes shows that this
        process does not hang, however long it takes in all.

        It is not compiled: a few batches of other sizes, without gradients, would each compile the blocks anew."""
        network = self.objective.network
        hooks = [
            module.register_forward_hook(lambda *_: self.watchdog.beat(self.step))
            for module in (network, *network.children())
        ]
        self.objective.eval()
        try:
            with self.ema.applied(), torch.compiler.set_stance("force_eager"):
                yield
        finally:
            self.objective.train()
            for hook in hooks:
                hook.remove()
            self.watchdog.beat(self.step)

    # State ----------------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Hands the completed step to the checkpoint writer; every process gathers, the first one writes."""
        self.settle()
        self._await_writer()
        tensors = capture(self.objective, self.optimizer, self.ema)
        if rank() != 0:
            return
        state = {
            "config": self.config.model_dump(mode="json"),
            "class_names": list(self.dataset.class_names),
            "class_counts": self.dataset.class_counts(self.config.model.num_classes or 0),
            "data": self.fingerprint,
            "processes": world_size(),
            "skipped": self.skips.total,
            "skipped_in_row": self.skips.in_row,
            "loss_scale": self.loss_scale.scale,
            "loss_scale_good_steps": self.loss_scale.good_steps,
            "history": [] if self.start is None else self.start.history,
        }
        self.writer.submit(self.step, tensors, state)

    def _settled(self) -> bool:
        """Waits, on every process, until the newest checkpoint is written or given up; whether it is on disk."""
        self._await_writer(retrying=True)
        (missing,) = agree(not self.writer.intact, device=self.device)
        return not missing

    def _await_writer(self, retrying: bool = False) -> None:
        """Waits for the write under way, on every process, telling the watchdogs as long as it gets on.

        Without `retrying` a write that has failed is not tried again, as a newer one is waiting.
        """
        before = -1.0
        while True:
            if not retrying:
                self.writer.supersede()
            busy, progress = agree(self.writer.busy(WRITE_POLL), self.writer.progress, device=self.device)
            if not busy:
                return
            if progress != before:
                self.watchdog.beat(self.step)
            before = progress

    def restore(self) -> None:
        """Continues from the checkpoint that this run starts from, if there is one."""
        if self.start is None:
            return
        found = self.start.checkpoint
        warn_of_threads(found)
        restore(found, self.objective, self.optimizer, self.ema)
        self.skips.total, self.skips.in_row = int(found.state["skipped"]), int(found.state["skipped_in_row"])
        self.loss_scale.scale = float(found.state["loss_scale"])
        self.loss_scale.good_steps = int(found.state["loss_scale_good_steps"])
        self.step = found.step

    # Surroundings ---------------------------------------------------------------------------------------------------

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.config.training.precision)
        return contextlib.nullcontext() if dtype is None else torch.autocast(self.device.type, dtype)
