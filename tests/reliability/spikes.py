"""F2: a spike of the loss is noticed, told apart (the data or the machine), and its batch left out.

Everything random is keyed by (seed, step, sample), so a step that is trained again from a checkpoint before it gives
the same numbers to the last bit: a spike that comes again is in the batch, one that does not was a fault of the
machine.
"""

import random
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from epg.objectives.base import Losses
from epg.runs import prepare_run
from epg.training.spikes import LossSpikeWarning, SpikeDetector
from epg.training.tracking import read_log
from tests.helpers import change_losses
from tests.reliability.driver import Driver, run_config
from tests.reliability.inside import difference

CALM, APART = 200, 10
"""Steps before the first spike, as the loss of a new network falls by tens, and from one spike to the next."""
BITS = range(23, 31)
"""Of the exponent: the others may change too little to matter."""
TERMS = ("loss", "contrastive", "consistency", "denoising", "auxiliary")


# Noticed? -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Noticed:
    """Of steps whose loss was raised, and of clean ones."""

    raised: int
    found: int
    clean: int
    alarms: int

    def __str__(self) -> str:
        found = f"{self.found} of {self.raised} spikes found, " if self.raised else ""
        return f"{found}{self.alarms} false alarms in {self.clean:,} clean steps"


def raised_steps(trials: int) -> set[int]:
    return set(range(CALM, CALM + APART * trials, APART))


def train(folder: Path, stage: str, trials: int, encoder: Path | None, factor: float = 20.0) -> None:
    """Trains with so many times the loss, and its gradient, in every one of `raised_steps`; 1 is a clean run."""
    steps, wanted = CALM + APART * trials, raised_steps(trials)
    training = {"batch_size": 64, "checkpoint_every": steps}
    trainer = prepare_run(run_config(stage, steps, training=training), folder, encoder=encoder).trainer

    def raised(step: int, losses: Losses) -> Losses:
        by = factor if step in wanted else 1.0
        return {name: value if "/" in name else value * by for name, value in losses.items()}

    change_losses(trainer.objective, raised)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LossSpikeWarning)
        trainer.run()


def noticed(folder: Path, wanted: set[int], detector: SpikeDetector | None = None) -> Noticed:
    """What the run's log says; or what another detector says of the same losses."""
    lines = read_log(folder)
    if detector is None:
        found = {int(line["spike_step"]) for line in lines if "spike_step" in line}
    else:
        terms = [{name: line[name] for name in TERMS if name in line} for line in lines]
        found = {step for step, values in enumerate(terms) if detector.check(step, values)}
    return Noticed(len(wanted), len(found & wanted), len(lines) - len(wanted), len(found - wanted))


# Told apart? ----------------------------------------------------------------------------------------------------------


def numbers(folder: Path, step: int) -> list[tuple[float | None, float | None]]:
    """Losses and gradient norms from this step (counted from 0) on; None for one that was not finite and left out."""
    return [(line.get("loss"), line.get("grad_norm")) for line in read_log(folder) if line["step"] > step]


def cause(folder: Path, again: Path, step: int) -> str:
    """What docs/training.md tells one to compare: `data` if the step came out as before, `machine` if not."""
    return "data" if numbers(folder, step) == numbers(again, step) else "machine"


def told_apart(driver: Driver, folder: Path, kind: str, chooser: random.Random, **sabotage: dict[str, Any]) -> str:
    """One run with a fault of this kind, and the same again from the checkpoint before; what was taken for its cause.

    kind: `data`, a batch with 20 times the loss whenever it is computed; `loss`, the same once; `bit`, a bit of a
    gradient flipped once.
    """
    step, steps = chooser.randint(4, 9), 12
    config = run_config("diffusion", steps, training={"keep": 99})
    if kind == "bit":
        fault = {"flip_bit": {"step": step, "parameter": chooser.randrange(1000), "bit": chooser.choice(BITS)}}
    else:
        fault = {"raise_loss": {"steps": [step]}}
    driver.train(folder / "run", config, **fault, **sabotage)
    before = folder / "run" / "checkpoints" / f"step-{2 * (step // 2):08d}"
    lasting = fault if kind == "data" else {}
    job = driver.train(folder / "again", config, resume=before, **lasting, **sabotage)
    return cause(folder / "run", folder / "again", step) if job.codes == [0] else job.said[-300:]


# Left out? ------------------------------------------------------------------------------------------------------------

OTHERWISE = ("config", "history")
"""Parts of a checkpoint's state that say how it came about."""


def rolled_back(driver: Driver, folder: Path, stage: str, step: int, encoder: Path | None, leave: bool = True) -> str:
    """Continues from before a bad batch with `training.leave_out`; in what that differs from a run that never had it.

    Without `leave` the run is continued as it was: the control.
    """
    fault: dict[str, Any] = {"raise_loss": {"steps": [step]}, "encoder": encoder}
    config = run_config(stage, 10, training={"keep": 99})
    driver.train(folder / "run", config, **fault)
    before = folder / "run" / "checkpoints" / f"step-{2 * (step // 2):08d}"
    config = run_config(stage, 10, training={"keep": 99, "leave_out": [step] if leave else []})
    overrides = ["training.leave_out"] if leave else []
    job = driver.train(folder / "back", config, resume=before, overrides=overrides, **fault)
    if job.codes != [0]:
        return job.said[-300:]
    driver.train(folder / "without", run_config(stage, 10), leave_out={"step": step}, encoder=encoder)
    return ", ".join(name for name in difference(folder / "back", folder / "without") if name not in OTHERWISE)
