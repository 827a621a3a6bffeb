"""D2, R7: what one process, two processes and accumulation compute is the same, and may change on the way.

Runs are compared in float64, where the order of additions is all that differs: whatever is not the same computation
shows by orders of magnitude.
"""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from epg.checkpoint import checkpoint
from epg.training.tracking import read_log
from tests.reliability.driver import Driver, run_config

LOSS, GRADIENT, WEIGHTS = 1e-6, 1e-5, 1e-10
"""What is allowed, relative to the size of what is compared."""


def config(stage: str, steps: int, precision: str = "fp64", **training: Any) -> Any:
    """Clipping that acts, averages of both kinds, and epochs that end inside a batch (70 images, batches of 32)."""
    return run_config(
        stage,
        steps,
        data={"per_class": 7},
        # Three stages of r(t): with more, r(t) rounds to t and there is nothing left to compare.
        objective={"d": max(1, steps // 3)} if stage == "consistency" else {},
        optimizer={"clip": 0.5, "warmup_steps": steps // 4},
        training={
            "batch_size": 32,
            "precision": precision,
            "ema": [] if stage == "pretraining" else [0.9],
            "power_ema": [0.1],
            "checkpoint_every": steps,
            **training,
        },
    )


@dataclass(frozen=True)
class Distance:
    """Largest relative differences of two runs."""

    loss: float
    gradient: float
    weights: float
    order: bool
    """Whether every step had the same samples at the same places."""

    @property
    def equal(self) -> bool:
        return self.order and self.loss <= LOSS and self.gradient <= GRADIENT and self.weights <= WEIGHTS

    def __str__(self) -> str:
        return (
            f"loss {self.loss:.1e}, gradient {self.gradient:.1e}, weights {self.weights:.1e}, "
            f"order {'the same' if self.order else 'DIFFERENT'}"
        )


def distance(one: Path, other: Path) -> Distance:
    """Between two finished runs of `config`, with the recordings of `sabotage.record`."""
    losses = [[line["loss"] for line in read_log(run)] for run in (one, other)]
    gradients = [
        relative(load_file(file), load_file(file.with_name(file.name.replace(one.name, other.name, 1))))
        for file in sorted(one.parent.glob(f"{one.name}.gradient-*"))
    ]
    return Distance(
        loss=max(abs(a - b) / abs(a) for a, b in zip(*losses, strict=True)),
        gradient=max(gradients, default=0.0),
        weights=max(relative(a, b) for a, b in zip(weights(one), weights(other), strict=True)),
        order=order(one) == order(other),
    )


def relative(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Norm of the difference of all tensors, relative to their norm."""
    assert one.keys() == other.keys()
    a, b = (torch.cat([t[name].double().flatten() for name in sorted(one)]) for t in (one, other))
    return float((a - b).norm() / a.norm())


def weights(run: Path) -> list[dict[str, Tensor]]:
    """Weights, averages and moments of the last checkpoint."""
    found = checkpoint.find(run)
    return [found.tensors(name) for name in sorted(found.groups)]


def order(run: Path) -> dict[int, list[int]]:
    """Samples of every step of the global batch in their order, of all ranks; of a step done twice, the last time."""
    parts: dict[int, dict[int, list[int]]] = {}
    for file in run.parent.glob(f"{run.name}.samples-*"):
        for line in file.read_text().splitlines():
            step, first, indices = json.loads(line)
            parts.setdefault(step, {}).update({first + i: [index] for i, index in enumerate(indices)})
    return {step: [index for place in sorted(p) for index in p[place]] for step, p in parts.items()}


def compare(
    driver: Driver, folder: Path, stage: str, steps: int, ways: Sequence[str], encoder: Path | None, **control: Any
) -> dict[str, Distance]:
    """One process against each way: `ddp` and `fsdp` on two processes, `accumulation` of two micro-batches."""
    recording = {"record": {"gradients": [g for g in (0, 9, 99) if g < steps]}}
    options = {"encoder": encoder if stage != "pretraining" else None, **recording}
    size = 48 if "uneven_shares" in control else 32
    run(driver, folder / "one", config(stage, steps, batch_size=size), **options)
    found = {}
    for way in ways:
        more: dict[str, Any] = {"micro_batch": 16} if way == "accumulation" else {"parallel": way}
        if stage == "consistency" and way == "accumulation":
            options["encoder"] = None  # negatives of the auxiliary loss are those of a micro-batch: not the same loss
            run(driver, folder / "one-alone", config(stage, steps), **options)
        processes = 1 if way == "accumulation" else 2
        changed = config(stage, steps, batch_size=size, **more)
        run(driver, folder / way, changed, processes=processes, **options, **control)
        alone = stage == "consistency" and way == "accumulation"
        found[way] = distance(folder / ("one-alone" if alone else "one"), folder / way)
    return found


def run(driver: Driver, folder: Path, config: Any, **options: Any) -> None:
    job = driver.train(folder, config, **options)
    assert set(job.codes) == {0}, f"{job.codes}\n{job.said[-3000:]}"


def change_on_the_way(
    driver: Driver,
    folder: Path,
    stage: str,
    steps: int,
    worlds: Sequence[int],
    precision: str,
    seed: int,
    **control: Any,
) -> Path:
    """A run on as many processes as `worlds` says, one number after the other, changed at random steps."""
    chooser = random.Random(seed)
    stops = sorted(chooser.sample(range(1, steps - 1), len(worlds) - 1))
    for i, (world, stop) in enumerate(zip(worlds, [*stops, None], strict=True)):
        (folder.parent / f"{folder.name}.acted-0").unlink(missing_ok=True)
        options = dict(control, record={})
        if stop is not None:
            options["act"] = {"what": "SIGTERM", "moment": "boundary", "step": stop}
        job = driver.train(folder, config(stage, steps, precision), processes=world, **options)
        assert set(job.codes) == {0 if stop is None else 75}, (i, job.codes, job.said[-3000:])
    return folder
