"""Pre-train, fine-tune a diffusion and a one-step consistency model, train the same from scratch, sample, evaluate.

The budget is time (`plan.py`). Running the same command again continues an interrupted study; a finished one is shown.
"""

import math
import time
from pathlib import Path
from typing import Any

from epg.bench.steps import seconds_per_step
from epg.checkpoint import checkpoint
from epg.checkpoint.lock import locked
from epg.command_line import written
from epg.config.objectives import Stage
from epg.config.recipe import merge, run_config
from epg.config.settings import RunConfig, parse
from epg.data.configured import open_training_data
from epg.errors import UserError
from epg.grids import evaluations
from epg.messages import say
from epg.quickstart.examination import Examination
from epg.quickstart.length import at_length, halvings, keep_only, with_milestones
from epg.quickstart.page import write_report
from epg.quickstart.plan import (
    CLASSIFIER_SECONDS,
    MARGIN,
    MOST_SAMPLES,
    OVERHEAD_SECONDS,
    PARTS,
    SAME_STEPS,
    Part,
    Plan,
    compared,
    milestones_for,
    read_plan,
    refuse_other,
)
from epg.quickstart.results import StudyResult, finished
from epg.runs import prepare_run
from epg.storage import files
from epg.training.resolving import resolve


def run_quickstart(
    data: str = "digits",
    *,
    minutes: float = 10.0,
    out: Path | None = None,
    image_size: int | None = None,
    seed: int = 0,
) -> StudyResult:
    """Runs (or continues, or shows) the study: `index.html`, grids, curves and `results.json` in its folder.

    Raises UserError where `out` holds a study of something else, or of another budget.
    """
    started = time.monotonic()
    if not (minutes > 0 and math.isfinite(minutes)):
        raise UserError(f"--minutes {minutes:g}: must be positive")
    study = Study(data, image_size, seed)
    folder = out or free_folder(data, minutes)
    with locked(folder):
        result = finished(folder) if study.open_plan(folder, minutes, started) else None
        if result is None:
            for part in PARTS:
                study.train(part)
            examination = Examination(folder, study.plan, study.recipe, study.configs, study.dataset)
            result = examination.result(study.advice)
        page = write_report(result, folder)
        study.keep_the_last()
    print(f"\nOpen {page} in a browser.")
    print(f"Next: {written('epg', 'sample', folder / 'diffusion', '--out', folder / 'samples')}")
    return result


def free_folder(data: str, minutes: float) -> Path:
    """Where a study goes unless told otherwise; one of another length than the study that is there gets its own."""
    folder = Path("runs") / f"quickstart-{Path(data).stem or Path(data).resolve().stem}"
    plan = read_plan(folder)
    if plan is None or plan.minutes == minutes:
        return folder
    other = folder.with_name(f"{folder.name}-{minutes:g}min")
    say(f"{folder} holds a study of {plan.minutes:g} minutes (--minutes {plan.minutes:g} shows or continues it).")
    say(f"This one, of {minutes:g} minutes, goes into {other}.")
    return other


class Study:
    """The parts of the study on one data set."""

    folder: Path
    plan: Plan

    def __init__(self, data: str, image_size: int | None, seed: int) -> None:
        self.seed = seed
        self.recipe = "digits" if data == "digits" else "small"
        overrides: dict[str, Any] = {"seed": seed, "data": {"source": data}}
        if image_size is not None:
            overrides["data"]["image_size"] = image_size
        self.overrides = overrides
        first = self.recipe_config("pretraining")
        say(f"data: {data} at {first.data.image_size}x{first.data.image_size}")
        self.dataset = open_training_data(first.data)
        self.configs = {part.name: resolve(self.recipe_config(part.stage), self.dataset) for part in PARTS}
        self.advice = ""
        classes = f"{self.dataset.num_classes} classes" if self.dataset.num_classes else "no labels"
        say(f"      {len(self.dataset)} images, {classes}")

    def recipe_config(self, stage: Stage) -> RunConfig:
        base = run_config(self.recipe, stage).model_dump()
        return parse(merge(base, self.overrides), f"recipe {self.recipe}")

    def open_plan(self, folder: Path, minutes: float, started: float) -> bool:
        """Takes up the plan of the study in a folder, or makes one; whether there was one."""
        self.folder = folder
        about = {
            "images": self.dataset.fingerprint(),
            "--image-size": self.dataset.image_size,
            "--seed": self.seed,
        }
        plan = read_plan(folder)
        if plan is None:
            self.plan = self._measured_plan(about, minutes, started)
            self.plan.write(folder)
        else:
            refuse_other(plan, about, folder)
            if plan.minutes != minutes:
                raise UserError(
                    f"--minutes {minutes:g}: {folder} holds a study of {plan.minutes:g} minutes. Pass --minutes "
                    f"{plan.minutes:g} to continue or show it, or another --out for one of {minutes:g} minutes"
                )
            self.plan = plan
            say(f"continuing the study in {folder}")
        return plan is not None

    def _measured_plan(self, about: dict[str, Any], minutes: float, started: float) -> Plan:
        say("measuring how fast this machine is")
        seconds = {
            part.name: seconds_per_step(self.configs[part.name], self.dataset)
            for part in PARTS
            if part.name not in SAME_STEPS
        }
        per_sample = self._seconds_per_sample(self.configs["diffusion"], seconds["diffusion"])
        return Plan(about, minutes, seconds, per_sample, milestones_for(minutes, per_sample), started=started)

    def _seconds_per_sample(self, config: RunConfig, seconds_per_step: float) -> float:
        """Estimate: a training step is about three forward passes."""
        nfe = sum(evaluations(config.sampling, config.noise, config.shift))
        return nfe * seconds_per_step / config.training.batch_size / 3

    def train(self, part: Part) -> None:
        """Trains a part to its end, once more where it turns out to have been planned much too short."""
        fresh = not (self.folder / part.name).exists()
        self._train(part)
        if fresh and self.plan.longer(part):
            say(f"{part.title}: the machine is faster than it was when measured; beginning again, longer")
            self.plan.forget(part)
            files.discard(self.folder / part.name)  # made a moment ago
            self._train(part)

    def _train(self, part: Part) -> None:
        steps = self.plan.begin(part)
        self.plan.write(self.folder)
        config = self._config(part)
        say(f"\n{part.title}: {steps} steps")
        if part.name == "diffusion":
            self.advice = advice(steps, self.configs[part.name].training.steps, self._recipe_minutes())
            if self.advice:
                say(f"note: {self.advice}")
        encoder = self.folder / "pretraining" if part.pretrained else None
        begin = time.monotonic()
        trainer = prepare_run(config, self.folder / part.name, encoder=encoder, dataset=self.dataset).trainer
        before = checkpoint.newest(self.folder / part.name / "checkpoints")
        try:
            trainer.run()
            self.plan.end(part, steps - (before.step if before else 0), time.monotonic() - begin)
        finally:  # Ctrl-C too: the time is spent
            self.plan.write(self.folder)
        keep_only(halvings(self._checkpoints(part.name), self.plan.milestones if compared(part.name) else 1))

    def _config(self, part: Part) -> RunConfig:
        return with_milestones(
            at_length(self.configs[part.name], self.plan.steps[part.name]),
            self.plan.milestones if compared(part.name) else 1,
        )

    def _checkpoints(self, name: str) -> list[Path]:
        return checkpoint.listing(self.folder / name / "checkpoints")

    def _recipe_minutes(self) -> float:
        """What the recipe's own lengths take at the speed seen so far."""
        plan = self.plan
        steps = sum(
            self.configs[p.name].training.steps * plan.seconds_per_step[SAME_STEPS.get(p.name, p.name)] for p in PARTS
        )
        samples = MOST_SAMPLES * 2 * plan.milestones * plan.seconds_per_sample
        return (plan.slowdown * (steps / MARGIN + samples) + OVERHEAD_SECONDS + CLASSIFIER_SECONDS) / 60

    def keep_the_last(self) -> None:
        """Of every part its export and its newest checkpoint, from which it could go on."""
        for part in PARTS:
            keep_only(self._checkpoints(part.name)[-1:])


def advice(steps: int, recipe: int, minutes: float) -> str:
    """What to expect of a training far shorter than the recipe's, and the budget for all of it; else nothing."""
    if steps >= recipe / 2:
        return ""
    share = f"{steps / recipe:.0%}" if steps >= recipe / 100 else "less than 1 %"
    return (
        f"{steps:,} steps of diffusion are {share} of the recipe's {recipe:,}; samples will look unfinished. On this "
        f"machine all of them need about --minutes {5 * math.ceil(minutes / 5)}."
    )
