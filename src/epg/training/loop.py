"""The training loop: takes any objective, knows nothing of stages."""

import contextlib
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from torch import Tensor

from epg.checkpoint.writer import CheckpointWriter
from epg.config.settings import RunConfig
from epg.data.loading.base import ImageDataset
from epg.data.loading.loader import Batch, BatchLoader
from epg.distributed import agree, rank, world_size
from epg.errors import InterruptedRunError, PeerError
from epg.objectives.base import Objective
from epg.signals import name_of
from epg.training.callbacks import Audience, Callback
from epg.training.judging import Evaluation, Judge, Preview, averaged
from epg.training.learner import Learner, StepResult
from epg.training.parallel import refuse_uneven_processes
from epg.training.report import Reporter
from epg.training.resume import Start, warn_of_threads
from epg.training.stopping import StopSignals
from epg.training.trackers import require_trackers
from epg.training.tracking import Trackers, open_trackers
from epg.training.watchdog import Watchdog


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
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.config, self.dataset, self.folder, self.start = config, dataset, folder, start
        self.preview, self.evaluation, self.judge, self.callbacks = preview, evaluation, judge, callbacks
        self.fingerprint = dataset.fingerprint()
        refuse_uneven_processes(config, world_size())
        require_trackers(config)
        self.learner = Learner(objective, config, folder, lambda: (self.signals.received, self.writer.failed))
        self.objective, self.device = self.learner.objective, self.learner.device
        self.writer = CheckpointWriter(folder, config.training.keep, config.training.keep_every)
        self.signals = StopSignals()
        self.watchdog = Watchdog(config.training.timeout)
        self.stop_signal = 0.0

    @property
    def step(self) -> int:
        """Completed steps."""
        return self.learner.step

    # The loop -------------------------------------------------------------------------------------------------------

    def run(self, signals: StopSignals | None = None) -> None:
        """Trains to `config.training.steps`; `signals` are those that are caught already."""
        self.signals = signals or self.signals
        with self.signals.caught():
            self.signals.starting = False
            self.restore()
            if self.step < self.config.training.steps or self._evaluation_missing():
                self._train()
            self.learner.skips.refuse_end(self.step, self.learner.optimizer.updates(), self.folder)

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
        audience = Audience(self.callbacks, lambda: self.writer.written)
        # The last checkpoint before the trackers, which may wait for a network.
        opened = open_trackers(self.config, self.folder, self.step, audience)
        with opened as trackers, self.writer, self.watchdog.watching():
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
                self._alive()
                if log:
                    reporter.restart()

    def train_step(self, micro_batches: Sequence[Batch]) -> StepResult:
        """One step of the learner, once the one before is settled; the next batch is on its way meanwhile."""
        batches = [batch.to(self.device) for batch in micro_batches]
        self.settle()
        result = self.learner.take(batches)
        if world_size() == 1:
            self.stop_signal = self.signals.received
        return result

    def settle(self) -> None:
        """Finishes the step before, see `Learner.settle`. Raises PeerError where a checkpoint could not be written."""
        told = self.learner.settle()
        failed = float(self.writer.failed) if world_size() == 1 else 0.0
        if told:
            self.stop_signal, failed = told
        if failed:
            self.writer.finish()  # raises in the process that writes
            raise PeerError("rank 0 could not write a checkpoint; it says why", int(failed))

    def _numbers(self, result: StepResult, batch: Batch) -> dict[str, float | Tensor]:
        """What a log line says besides losses and rates. All processes call it together."""
        with self.learner.autocast():
            diagnostics = self.objective.diagnostics(batch.to(self.device), self.step - 1)
        schedules = self.objective.schedule_numbers(self.step - 1)
        judgement: dict[str, float] = {}
        if self.judge is not None and self._judged():
            with self._averaged():
                judgement = self.judge()
        return {"lr": result.lr, "skipped": self.learner.skips.total, **schedules, **diagnostics, **judgement}

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
            f"stopped by {name_of(int(self.stop_signal))} after step {self.step}, which is saved in "
            f"{self.folder}. Run the same command again to continue."
        )

    def _evaluation_missing(self) -> bool:
        return self.evaluation is not None and self.evaluation.missing(self.step)

    def _evaluate(self, trackers: Trackers) -> None:
        """The checkpoint of this step is being written meanwhile, so that stopping here loses nothing."""
        assert self.evaluation is not None

        def between() -> None:
            self._alive()
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

    def _averaged(self) -> contextlib.AbstractContextManager[None]:
        return averaged(self.learner, self._alive)

    def _alive(self) -> None:
        self.watchdog.beat(self.step)

    # State ----------------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Hands the completed step to the checkpoint writer; every process gathers, the first one writes."""
        self.settle()
        self.writer.wait(self.device, self._alive)
        tensors = self.learner.tensors()
        if rank() != 0:
            return
        state = {
            "config": self.config.model_dump(mode="json"),
            "class_names": list(self.dataset.class_names),
            "class_counts": self.dataset.class_counts(self.config.model.num_classes or 0),
            "data": self.fingerprint,
            "processes": world_size(),
            **self.learner.counters(),
            "history": [] if self.start is None else self.start.history,
        }
        self.writer.submit(self.step, tensors, state)

    def _settled(self) -> bool:
        """Waits, on every process, until the newest checkpoint is written or given up; whether it is on disk."""
        self.writer.wait(self.device, self._alive, retrying=True)
        (missing,) = agree(not self.writer.intact, device=self.device)
        return not missing

    def restore(self) -> None:
        """Continues from the checkpoint that this run starts from, or begins."""
        if self.start is None:
            self.learner.objective.begin(self.dataset)
        else:
            warn_of_threads(self.start.checkpoint)
            self.learner.restore(self.start.checkpoint)
        self.learner.objective.ready()
