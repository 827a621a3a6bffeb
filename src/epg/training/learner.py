"""What a run learns, and one step of it: weights, averages, optimizer, and the steps that are left out."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from epg.checkpoint.checkpoint import Checkpoint
from epg.config.settings import RunConfig
from epg.data.loading.loader import Batch
from epg.distributed import all_reduce_max, pick_device, world_size
from epg.networks.precision import PRECISIONS
from epg.objectives.base import Objective
from epg.sharding import full
from epg.training.ema import EMA
from epg.training.faults import Buffers, LossScale, Skips, explain_non_finite
from epg.training.optim import learning_rate, make_optimizer
from epg.training.parallel import gradient_sync, wrap
from epg.training.snapshot import Groups, capture, restore


class Answer:
    """Numbers on their way from a device. `read` waits for what had been queued before them, and for nothing since."""

    def __init__(self, values: Tensor) -> None:
        self._values = values
        self._there: torch.cuda.Event | None = None
        if values.device.type == "cuda":
            self._values, self._there = values.to("cpu", non_blocking=True), torch.cuda.Event()
            self._there.record()

    def read(self) -> list[float]:
        if self._there is not None:
            self._there.synchronize()
        return self._values.tolist()


@dataclass(frozen=True)
class StepResult:
    """Mean losses of this process and the gradient norm, and the learning rate. A step that is left out has no losses,
    which is known once it is settled."""

    losses: dict[str, Tensor]
    lr: float


@dataclass(frozen=True)
class Unsettled:
    """A step whose optimizer is queued, and whose flags are on their way to the host."""

    step: int
    batches: Sequence[Batch]
    result: StepResult
    flags: Answer


class Learner:
    """`objective` on its device with all that training changes, which is what a checkpoint holds.

    An accelerator is not waited for: the optimizer does nothing in a step that is left out, and everything else that
    depends on that follows in `settle`, when the optimizer is under way.

    Args:
        folder: the run folder, for messages.
        tell: what all processes are to know with a step; `settle` gives the largest of each.
    """

    def __init__(
        self, objective: Objective, config: RunConfig, folder: Path, tell: Callable[[], tuple[float, ...]]
    ) -> None:
        self.config, self.folder, self.tell = config, folder, tell
        training = config.training
        self.device = pick_device(training.device)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = training.tf32
        self.objective = objective.to(self.device, objective.dtype).train()
        self.wrapped = wrap(self.objective, config)
        self.parameters = [p for p in self.objective.parameters() if p.requires_grad]
        self.buffers = Buffers(self.objective)
        self.optimizer = make_optimizer(self.objective, config.optimizer)
        self.ema = EMA(self.objective.network, training.ema, training.power_ema, training.steps)
        self.loss_scale = LossScale(enabled=training.precision == "fp16")
        self.skips = Skips(training.max_nonfinite)
        self.step = 0
        self.unsettled: Unsettled | None = None

    def take(self, batches: Sequence[Batch]) -> StepResult:
        """One optimizer step on this process's micro-batches, which are on the device; the step before is settled.

        It is left out, on every process together, where `training.leave_out` says so, or the loss, a gradient or a
        statistic is not finite: then nothing has changed but the number of the step, and fp16's loss scale where that
        was the cause.
        """
        training = self.config.training
        lr = learning_rate(self.step, training.steps, self.config.optimizer, training.batch_size)
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
        self.step += 1
        return result

    def settle(self) -> list[float]:
        """Finishes the step before, as far as it depends on its flags: averages and targets follow the weights, or the
        step is left out. Called by all processes together, before anything uses what they hold.

        Returns what they told each other with it, nothing where there is no such step or only one process.

        Raises DivergedError after `training.max_nonfinite` steps in a row that were not finite.
        """
        step, self.unsettled = self.unsettled, None
        if step is None:
            return []
        bad_forward, bad_gradient, *told = step.flags.read()
        if bad_forward or bad_gradient:
            self._skip(step, scaled_too_much=not bad_forward)
            step.result.losses.clear()
        else:
            self.objective.after_step(step.step)
            self.ema.update(step.step + 1)
            self.loss_scale.update(finite=True)
            self.skips.in_row = 0
        return told

    def _forward_backward(self, batches: Sequence[Batch]) -> dict[str, Tensor]:
        """Gradients of the mean loss of this process's micro-batches; means of the terms."""
        total: dict[str, Tensor] = {}
        self.optimizer.zero_grad(set_to_none=True)
        if self.config.training.cuda_graphs:
            torch.compiler.cudagraph_mark_step_begin()  # imports the compiler: two seconds
        for i, batch in enumerate(batches):
            with gradient_sync(self.wrapped, enabled=i == len(batches) - 1):
                drawn = self.objective.draw(batch, self.step)
                with self.autocast():
                    losses = self.wrapped(drawn)
                (losses["loss"] * (self.loss_scale.factor / len(batches))).backward()
            for name, value in losses.items():
                total[name] = total.get(name, 0) + value.detach() / len(batches)
        return total

    def _flags(self, loss: Tensor, norm: Tensor) -> Tensor:
        """1 where the forward passes, and where the gradients, of any process gave what is not finite; where there are
        several processes what they `tell` each other, too."""
        fine = torch.stack([torch.isfinite(loss) & self.buffers.finite().to(loss.device), torch.isfinite(norm)])
        flags = 1 - fine.float()
        if world_size() == 1:
            return flags
        told = torch.tensor(self.tell(), dtype=torch.float32)
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
                return explain_non_finite(self.objective, step.batches, step.step, self.autocast)
            finally:
                self.buffers.put_back()

        self.skips.add(f"step {step.step}: not finite ({numbers})", explain, self.folder)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The precision of forward passes."""
        dtype = PRECISIONS.get(self.config.training.precision)
        return contextlib.nullcontext() if dtype is None else torch.autocast(self.device.type, dtype)

    # What a checkpoint holds ----------------------------------------------------------------------------------------

    def tensors(self) -> Groups:
        """See `snapshot.capture`; every process must call it together."""
        return capture(self.objective, self.optimizer, self.ema)

    def counters(self) -> dict[str, float]:
        """Whatever changes and is no tensor."""
        return {
            "skipped": self.skips.total,
            "skipped_in_row": self.skips.in_row,
            "loss_scale": self.loss_scale.scale,
            "loss_scale_good_steps": self.loss_scale.good_steps,
        }

    def restore(self, found: Checkpoint) -> None:
        """The inverse of both. Raises ArtefactError, before anything is changed, if a tensor does not fit."""
        restore(found, self.objective, self.optimizer, self.ema)
        self.skips.total, self.skips.in_row = int(found.state["skipped"]), int(found.state["skipped_in_row"])
        self.loss_scale.scale = float(found.state["loss_scale"])
        self.loss_scale.good_steps = int(found.state["loss_scale_good_steps"])
        self.step = found.step
