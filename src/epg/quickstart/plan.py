"""How long each part of a study trains: planned from the budget and the speed measured, again before each part begins.

The plan is a file, so that running the same command again continues an interrupted study with the same lengths.
"""

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from epg.config.objectives import Stage
from epg.errors import ArtefactError, UserError
from epg.storage.files import replace_text
from epg.storage.outputs import writing

FILE = "plan.json"
FEWEST_STEPS = 20
MOST_SAMPLES, FEWEST_SAMPLES = 1000, 50  # per evaluation, as the budget allows
MOST_MILESTONES = 5  # evaluated at 1/16, 1/8, 1/4, 1/2 and the end: of the diffusion model and of its baseline
EVALUATION_SHARE = 0.2  # of the budget, at most
CLASSIFIER_SECONDS = 25.0
OVERHEAD_SECONDS = 20.0  # imports, checkpoints, previews, the page
MARGIN = 0.92  # of the time that is left is planned: neighbours on the machine come and go
LEAST_SHARE = 0.25  # of the budget is trained, however little measuring leaves


@dataclass(frozen=True)
class Part:
    """One training run of the study and its share of the training time."""

    name: str
    stage: Stage
    pretrained: bool
    share: float
    title: str


PARTS = (  # in the order of training: what adapts its length comes last
    Part("pretraining", "pretraining", False, 0.16, "pre-training"),
    Part("diffusion", "diffusion", True, 0.25, "diffusion, pre-trained"),
    Part("diffusion-scratch", "diffusion", False, 0.25, "diffusion, from scratch"),
    Part("consistency", "consistency", True, 0.34, "one-step consistency, pre-trained"),
)
SAME_STEPS = {"diffusion-scratch": "diffusion"}  # the baseline gets as many fine-tuning steps


@dataclass
class Plan:
    """The budget, what was measured, and what was decided so far."""

    about: dict[str, Any]
    """What is studied; another study needs another folder."""
    minutes: float
    seconds_per_step: dict[str, float]
    """Of each part but the baseline, before any training."""
    seconds_per_sample: float
    milestones: int
    steps: dict[str, int] = field(default_factory=dict)
    """Of the parts that have begun."""
    seconds: dict[str, float] = field(default_factory=dict)
    """A step of the parts that have ended, everything included."""
    spent: float = 0.0
    """Seconds, before this start of the program."""
    samples: int = 0
    """Of each evaluation; 0 until the first begins."""
    started: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        """Seconds of the budget."""
        return 60 * self.minutes - self.spent - (time.monotonic() - self.started)

    @property
    def slowdown(self) -> float:
        """The time of a step of the last part that ended, relative to what was measured beforehand."""
        if not self.seconds:
            return 1.0
        name, seconds = next(reversed(self.seconds.items()))
        return seconds / self.seconds_per_step[SAME_STEPS.get(name, name)]

    @property
    def evaluation_seconds(self) -> float:
        samples = self.samples or samples_for(EVALUATION_SHARE * 60 * self.minutes, self.seconds_per_sample, self)
        return CLASSIFIER_SECONDS + samples * 2 * self.milestones * self.seconds_per_sample

    def share(self, part: Part) -> float:
        """Seconds that a part which begins now may take."""
        waiting = [p for p in PARTS if p.name not in self.steps or p.name == part.name]
        training = max(
            MARGIN * (self.left - OVERHEAD_SECONDS - self.slowdown * self.evaluation_seconds),
            LEAST_SHARE * 60 * self.minutes * sum(p.share for p in waiting),
        )
        return training * part.share / sum(p.share for p in waiting)

    def begin(self, part: Part) -> int:
        """Decides the steps of a part, unless it has begun before."""
        if part.name not in self.steps:
            if part.name in SAME_STEPS:
                self.steps[part.name] = self.steps[SAME_STEPS[part.name]]
            else:
                seconds = self.seconds_per_step[part.name] * self.slowdown
                self.steps[part.name] = max(FEWEST_STEPS, int(self.share(part) / seconds))
        return self.steps[part.name]

    def end(self, part: Part, steps: int, seconds: float) -> None:
        """Records how long some steps of a part took."""
        if steps:
            self.seconds[part.name] = seconds / steps

    def begin_evaluation(self) -> int:
        """Decides how many samples are judged, by the time that is left."""
        if not self.samples:
            seconds = self.slowdown * self.seconds_per_sample
            self.samples = samples_for(self.left - CLASSIFIER_SECONDS, seconds, self)
        return self.samples

    def longer(self, part: Part) -> bool:
        """Whether a part that has just ended was planned so much too short that it is worth beginning it again.

        So it is where the machine was busy when speed was measured, and is not any more.
        """
        if part.name in SAME_STEPS or part.name not in self.seconds:
            return False
        again = Plan(**{**asdict(self), "steps": {n: s for n, s in self.steps.items() if n != part.name}})
        return again.begin(part) >= 2 * self.steps[part.name] > 0

    def forget(self, part: Part) -> None:
        """The part begins again; what it took stays measured."""
        del self.steps[part.name]

    def write(self, folder: Path) -> None:
        """Raises OutputError."""
        content = {**asdict(self), "spent": self.spent + time.monotonic() - self.started}
        del content["started"]
        with writing(folder):
            replace_text(folder / FILE, json.dumps(content, indent=1))


def samples_for(seconds: float, seconds_per_sample: float, plan: Plan) -> int:
    """How many samples of each checkpoint can be judged in a time; two runs are evaluated along the way."""
    affordable = seconds / (2 * plan.milestones * seconds_per_sample)
    return min(MOST_SAMPLES, max(FEWEST_SAMPLES, int(affordable)))


def milestones_for(minutes: float, seconds_per_sample: float) -> int:
    """Checkpoints along the way that are evaluated: all, or the last alone where time is short."""
    affordable = EVALUATION_SHARE * 60 * minutes / seconds_per_sample / 2
    return MOST_MILESTONES if affordable / MOST_MILESTONES >= MOST_SAMPLES / 4 else 1


def read_plan(folder: Path) -> Plan | None:
    """The plan of the study in a folder; None where there is none. Raises ArtefactError for a damaged one."""
    file = folder / FILE
    if not file.is_file():
        return None
    try:
        return Plan(**json.loads(file.read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise ArtefactError(f"{file}: damaged ({error}). Delete the folder, or choose another --out") from error


def refuse_other(plan: Plan, about: dict[str, Any], folder: Path) -> None:
    """Raises UserError where the study in a folder is of something else."""
    different = [key for key in about if plan.about.get(key) != about[key]]
    if different:
        raise UserError(
            f"--out {folder}: holds a study of other {' and '.join(different)} "
            f"({', '.join(str(plan.about.get(key))[:40] for key in different)}). Choose another --out"
        )


def compared(name: str) -> bool:
    """Whether a part is judged along the way: the pre-trained diffusion model and its baseline."""
    return name in SAME_STEPS or name in SAME_STEPS.values()
