"""Numbers that are not finite: how fp16 avoids them, when a step is left out, and where they come from."""

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from epg.data.loading.loader import Batch
from epg.distributed import world_size
from epg.errors import DivergedError
from epg.moments import Moments
from epg.networks.layers import BatchNorm
from epg.objectives.base import Objective
from epg.sharding import local


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
            torch._foreach_div_([parameter.grad for parameter in parameters if parameter.grad is not None], self.scale)

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

    def refuse_end(self, step: int, updates: int, folder: Path) -> None:
        """Raises DivergedError where a run comes to its end and was still, or always, leaving steps out."""
        cure = "Lower --optimizer.lr, set --optimizer.clip, or use --training.precision fp32, and train again."
        if updates == 0:
            raise DivergedError(
                f"{folder}: not one of {step} steps had a finite gradient, so nothing was learnt. {cure} (fp16 may "
                "need more steps until its loss scale fits.)"
            )
        if self.in_row > 1:
            raise DivergedError(
                f"{folder}: the last {self.in_row} of {step} steps were not finite and left out; the weights are those "
                f"of step {step - self.in_row}. {cure}"
            )


class Buffers:
    """What forward passes change, statistics of BatchNorm and running moments: kept before a step, put back where it
    is left out."""

    def __init__(self, module: nn.Module) -> None:
        norms = {name: child for name, child in module.named_modules() if isinstance(child, BatchNorm | Moments)}
        named = {f"{name}.{key}": t for name, norm in norms.items() for key, t in norm.named_buffers()}
        self.names, self.tensors = list(named), list(named.values())
        self._kept = [tensor.clone() for tensor in self.tensors]

    def keep(self) -> None:
        self._copy(self._kept, self.tensors)

    def put_back(self) -> None:
        self._copy(self.tensors, self._kept)

    @staticmethod
    @torch.no_grad()
    def _copy(targets: list[Tensor], sources: list[Tensor]) -> None:
        if targets:
            torch._foreach_copy_(targets, sources)

    def finite(self) -> Tensor:
        """Whether all are, as a tensor on their device."""
        return all_finite(self.tensors)

    def broken(self) -> list[str]:
        """The names of those that are not."""
        return [name for name, t in zip(self.names, self.tensors, strict=True) if not bool(torch.isfinite(t).all())]


def all_finite(tensors: Sequence[Tensor]) -> Tensor:
    """One boolean that waits for nothing; True of none at all."""
    ends = [end for t in tensors if t.is_floating_point() for end in torch.aminmax(t)]  # a pass; of a NaN both are NaN
    return torch.isfinite(torch.stack(ends)).all() if ends else torch.tensor(True)


SEARCHED = 16  # samples whose losses are looked at together


@torch.no_grad()
def explain_non_finite(
    objective: Objective,
    batches: Sequence[Batch],
    step: int,
    autocast: Callable[[], AbstractContextManager[Any]],
) -> str:
    """Where a non-finite number comes from: a weight, the loss term and samples of a part of the batch, or a gradient.

    Runs the step's forward passes again part by part, in the step's own precision; every process must call it
    together. A part has at least two samples, as BatchNorm needs.
    """
    broken = [name for name, p in objective.named_parameters() if not bool(torch.isfinite(local(p)).all())]
    findings = [f"weight {name}" for name in broken[:3]]
    for batch in batches:
        for part in parts(batch, SEARCHED):
            drawn = objective.draw(part, step)
            with autocast():
                losses = objective(drawn)
            broken_terms = [name for name, value in losses.items() if not bool(torch.isfinite(value))]
            terms = [name for name in broken_terms if name != "loss" and "/" not in name]
            if terms and not broken:
                findings.append(f"{', '.join(terms)} of samples {part.indices.tolist()}")
    found = "; ".join(findings[:3]) or broken_gradients(objective)
    if world_size() == 1:
        return found
    everywhere: list[Any] = [None] * world_size()
    dist.all_gather_object(everywhere, found)
    return " | ".join(f"rank {i}: {text}" for i, text in enumerate(everywhere))


def parts(batch: Batch, size: int) -> list[Batch]:
    """A batch in parts of `size` samples; the last one takes the rest."""
    starts = list(range(0, max(1, len(batch) - size + 1), size))
    return [
        Batch(batch.images[a:b], batch.labels[a:b], batch.indices[a:b], batch.first + a)
        for a, b in zip(starts, [*starts[1:], len(batch)], strict=True)
    ]


def broken_gradients(module: nn.Module) -> str:
    """What to say where every loss term is finite: which weights have a gradient that is not."""
    named = [(name, p.grad) for name, p in module.named_parameters() if p.grad is not None]
    broken = [name for name, gradient in named if not bool(torch.isfinite(local(gradient)).all())]
    more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
    return f"the gradient alone{' of ' if broken else ''}{', '.join(broken[:3])}{more}; every loss term is finite"
