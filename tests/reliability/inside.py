"""F1: what is not finite, put *inside* a step: into a layer of the forward pass, or into the gradient that flows back.

A step that is left out must leave everything as it was, so the run must end as one that never took the step.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from epg.checkpoint import checkpoint
from epg.data.loading.loader import Batch
from epg.distributed import rank
from epg.objectives.base import Drawn, Objective
from epg.training.loop import Trainer
from epg.training.snapshot import capture
from tests.reliability.driver import Driver, run_config

KINDS = ("nan", "inf", "huge", "gradient")
PLACES = {
    "pretraining": ("network.encoder.blocks.0", "network.projector.0", "momentum_network.projector.3"),
    "diffusion": ("network.encoder.blocks.0", "network.decoder.blocks.1", "network.decoder.out"),
    "consistency": ("network.encoder.norm", "network.decoder.blocks.0", "frozen_encoder.blocks.1"),
}
"""Modules whose output is spoilt; none of the frozen ones has a gradient."""


def faults(stage: str, passes: int) -> Iterator[tuple[str, str, int]]:
    """(place, kind, micro-batch): every kind at every place, the passes in turn."""
    number = 0
    for place in PLACES[stage]:
        for kind in KINDS:
            if kind == "gradient" and not place.startswith("network"):
                continue
            yield place, kind, number % passes
            number += 1


class Spoiler:
    """Spoils one element of a module's output in one micro-batch of one step, in these ranks."""

    def __init__(
        self, objective: Objective, place: str, kind: str, step: int, micro: int = 0, ranks: Sequence[int] = (0,)
    ) -> None:
        self.kind, self.step, self.micro, self.ranks = kind, step, micro, ranks
        self.active, self.passes = False, -1
        self.objective, self.original = objective, objective.draw
        objective.draw = self._draw  # type: ignore[method-assign]
        self.handle = objective.get_submodule(place).register_forward_hook(self._spoil)

    def _draw(self, batch: Batch, step: int) -> Drawn:
        """What begins every pass of a step."""
        self.passes = self.passes + 1 if step == self.step else -1
        self.active = self.passes == self.micro and rank() in self.ranks
        return self.original(batch, step)

    def _spoil(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        if not self.active:
            return None
        first, *rest = output if isinstance(output, tuple) else (output,)
        spoilt = first.clone()
        if self.kind == "gradient":
            if spoilt.requires_grad:
                spoilt.register_hook(self._spoil_gradient)
        else:
            value = {"nan": math.nan, "inf": math.inf, "huge": torch.finfo(spoilt.dtype).max / 2}[self.kind]
            spoilt.detach().view(-1)[0] = value
        return (spoilt, *rest) if rest else spoilt

    @staticmethod
    def _spoil_gradient(gradient: Tensor) -> Tensor:
        return gradient * math.inf

    def remove(self) -> None:
        self.handle.remove()
        self.objective.draw = self.original  # type: ignore[method-assign]


def held(trainer: Trainer) -> dict[str, Tensor]:
    """Copies of everything that a run carries from step to step."""
    groups = capture(trainer.objective, trainer.learner.optimizer, trainer.learner.ema)
    return {f"{name}/{key}": tensor.clone() for name, group in groups.items() for key, tensor in group.items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> list[str]:
    """Names of tensors that are not the same to the last bit."""
    return [name for name in before if not torch.equal(before[name], after[name])]


def config(stage: str, steps: int, processes: int = 1, passes: int = 3, **training: Any) -> Any:
    """Three micro-batches of a block of random numbers in every process."""
    return run_config(
        stage,
        steps,
        training={
            "batch_size": 16 * passes * processes,
            "micro_batch": 16 if passes > 1 else None,
            "max_nonfinite": 99,
            "checkpoint_every": steps,
            **training,
        },
    )


def difference(one: Path, other: Path) -> list[str]:
    """In what two finished runs differ, apart from counting what was left out."""
    found, wanted = checkpoint.find(one), checkpoint.find(other)
    names = [name for name in found.groups if changed(found.tensors(name), wanted.tensors(name))]
    counters = ("skipped", "skipped_in_row", "loss_scale", "loss_scale_good_steps")
    return names + [k for k in found.state if k not in counters and found.state[k] != wanted.state[k]]


def problem(
    driver: Driver,
    folder: Path,
    stage: str,
    fault: tuple[str, str, int],
    processes: int,
    encoder: Path | None,
    precision: str = "fp32",
    **sabotage: dict[str, Any],
) -> str:
    """Runs with a fault in one rank, and without that step at all; how the ends differ, "" if not."""
    place, kind, micro = fault
    settings, step = config(stage, 5, processes, precision=precision), 2
    options: dict[str, Any] = {"processes": processes, "encoder": encoder}
    spoil = {"place": place, "kind": kind, "step": step, "micro": micro, "ranks": [processes - 1]}
    job = driver.train(folder / "spoilt", settings, spoil_inside=spoil, **sabotage, **options)
    if set(job.codes) != {0}:
        return f"{fault}: ended with {job.codes}: {job.said[-300:]}"
    driver.train(folder / "without", settings, leave_out={"step": step}, **options)
    found = difference(folder / "spoilt", folder / "without")
    skipped = checkpoint.find(folder / "spoilt").state["skipped"]
    return f"{fault}: {found}, {skipped} skipped" if found or skipped != 1 else ""
