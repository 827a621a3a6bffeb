"""Pre-train, fine-tune a diffusion and a one-step consistency model, train the same from scratch, sample, evaluate.

The budget is time: the speed of each part is measured first and the number of steps follows. The plan is written
down, so that running the same command again continues an interrupted study with the same plan.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from epg.config import RunConfig, Stage, parse
from epg.data.dataset import ImageDataset
from epg.data.loader import BatchLoader
from epg.errors import UserError
from epg.evaluation.extractors.indomain import images_and_labels
from epg.evaluation.quick import Reference, evaluate, make_reference
from epg.loading import generator_of, load
from epg.networks import EPG
from epg.pictures import save_grid
from epg.quickstart.report import PartResult, StudyResult, write_report
from epg.recipe import merge, run_config
from epg.runs import build_objective, open_training_data, prepare_run, resolve
from epg.training.checkpoint import listing, read
from epg.training.lock import locked
from epg.training.loop import Trainer
from epg.training.tracking import read_log

MOST_SAMPLES, FEWEST_SAMPLES = 1000, 50  # per evaluation, as the budget allows
MOST_MILESTONES = 5  # evaluated at 1/16, 1/8, 1/4, 1/2 and the end: of the diffusion model and of its baseline
EVALUATION_SHARE = 0.2  # of the budget, at most
CLASSIFIER_SECONDS = 25.0
OVERHEAD_SECONDS = 20.0  # imports, checkpoints, previews, the page
MARGIN = 0.92  # of the time that is left is planned: neighbours on the machine come and go


@dataclass(frozen=True)
class Part:
    """One training run of the study and its share of the training time."""

    name: str
    stage: Stage
    pretrained: bool
    share: float
    title: str


PARTS = (
    Part("pretraining", "pretraining", False, 0.16, "pre-training"),
    Part("diffusion", "diffusion", True, 0.25, "diffusion, pre-trained"),
    Part("consistency", "consistency", True, 0.34, "one-step consistency, pre-trained"),
    Part("diffusion-scratch", "diffusion", False, 0.25, "diffusion, from scratch"),
)
SAME_STEPS = {"diffusion-scratch": "diffusion"}  # the baseline gets as many fine-tuning steps


def run_quickstart(
    data: str = "digits",
    *,
    minutes: float = 10.0,
    out: Path | None = None,
    image_size: int | None = None,
    seed: int = 0,
) -> StudyResult:
    """Runs (or continues) the study and writes `index.html`, grids, curves and `results.json` into its folder."""
    started = time.monotonic()
    if not minutes > 0:
        raise UserError(f"--minutes {minutes:g}: must be positive")
    folder = out or Path("runs") / f"quickstart-{Path(data).stem}"
    with locked(folder):
        study = Study(data, folder, image_size, seed)
        study.plan(started, 60 * minutes)
        for part in PARTS:
            study.train(part)
        result = study.evaluate(started)
        page = write_report(result, folder)
    print(f"\nOpen {page} in a browser.")
    return result


class Study:
    """The parts of the study on one data set."""

    def __init__(self, data: str, folder: Path, image_size: int | None, seed: int) -> None:
        self.folder, self.seed = folder, seed
        self.recipe = "digits" if data == "digits" else "small"
        overrides: dict[str, Any] = {"seed": seed, "data": {"source": data}}
        if image_size is not None:
            overrides["data"]["image_size"] = image_size
        self.overrides = overrides
        first = self.recipe_config("pretraining")
        say(f"data: {data} at {first.data.image_size}x{first.data.image_size}")
        self.dataset = open_training_data(first.data)
        self.configs: dict[str, RunConfig] = {}
        self.samples = self.milestones = 0
        classes = f"{self.dataset.num_classes} classes" if self.dataset.num_classes else "no labels"
        say(f"      {len(self.dataset)} images, {classes}")

    def recipe_config(self, stage: Stage) -> RunConfig:
        base = run_config(self.recipe, stage).model_dump()
        return parse(merge(base, self.overrides), f"recipe {self.recipe}")

    def plan(self, started: float, budget: float) -> None:
        """Decides steps and samples: from `plan.json` if the study is being continued, else by measuring."""
        configs = {part.name: resolve(self.recipe_config(part.stage), self.dataset) for part in PARTS}
        file = self.folder / "plan.json"
        if file.exists():
            plan = json.loads(file.read_text())
            say(f"continuing the plan in {file}")
        else:
            plan = self._measured_plan(configs, started, budget)
            file.write_text(json.dumps(plan, indent=1))
        steps, self.samples, self.milestones = plan["steps"], plan["samples"], plan["milestones"]
        self.configs = {n: with_milestones(at_length(configs[n], steps[n]), self.milestones) for n in configs}
        say("plan: " + ", ".join(f"{part.title} {steps[part.name]} steps" for part in PARTS))

    def _measured_plan(self, configs: dict[str, RunConfig], started: float, budget: float) -> dict[str, Any]:
        seconds = {
            part.name: seconds_per_step(configs[part.name], self.dataset)
            for part in PARTS
            if part.name not in SAME_STEPS
        }
        seconds_per_sample = self._seconds_per_sample(configs["diffusion"], seconds["diffusion"])
        affordable = EVALUATION_SHARE * budget / seconds_per_sample / 2  # two runs are evaluated along the way
        milestones = MOST_MILESTONES if affordable / MOST_MILESTONES >= MOST_SAMPLES / 4 else 1
        samples = min(MOST_SAMPLES, max(FEWEST_SAMPLES, int(affordable / milestones)))
        evaluation = CLASSIFIER_SECONDS + samples * 2 * milestones * seconds_per_sample
        left = budget - (time.monotonic() - started) - OVERHEAD_SECONDS - evaluation
        training = max(MARGIN * left, 0.25 * budget)  # a tiny budget still trains a little
        steps = {p.name: max(20, int(training * p.share / seconds[p.name])) for p in PARTS if p.name in seconds}
        steps |= {name: steps[same] for name, same in SAME_STEPS.items()}
        return {
            "steps": steps,
            "samples": samples,
            "milestones": milestones,
            "seconds_per_step": seconds,
            "seconds_per_sample": seconds_per_sample,
            "minutes": budget / 60,
        }

    def _seconds_per_sample(self, config: RunConfig, seconds_per_step: float) -> float:
        """Estimate: a training step is about three forward passes."""
        network = build_objective(config).network
        assert isinstance(network, EPG)
        nfe = generator_of(config, network.eval()).count_evaluations(config.sampling)
        return nfe * seconds_per_step / config.training.batch_size / 3

    def train(self, part: Part) -> None:
        encoder = self.folder / "pretraining" if part.pretrained else None
        config = self.configs[part.name]
        say(f"\n{part.title}: {config.training.steps} steps")
        run = prepare_run(config, self.folder / part.name, encoder=encoder, dataset=self.dataset)
        run.trainer.run()

    def evaluate(self, started: float) -> StudyResult:
        """Samples every generator; recognition and distances where there are labels."""
        reference: Reference | None = None
        data = self.configs["diffusion"].data
        if self.dataset.num_classes >= 2:
            say("\nevaluation: training a classifier on the real images")
            reference = make_reference(data, self.seed)
        parts = []
        for part in PARTS:
            log = read_log(self.folder / part.name)
            result = PartResult(part.name, part.title, self.configs[part.name].training.steps, log)
            if part.stage != "pretraining":
                say(f"evaluation: {part.title}")
                result = self._judge(result, reference)
            parts.append(result)
        shown, _ = images_and_labels(self.dataset, self._shown_indices())
        save_grid(shown, self.folder / "real.png", columns=self._columns())
        return StudyResult(
            data=str(data.source),
            recipe=self.recipe,
            image_size=data.image_size,
            images=len(self.dataset),
            class_names=tuple(self.dataset.class_names),
            parts=tuple(parts),
            floor=reference.floor if reference else None,
            classifier_accuracy=reference.judge.held_out_accuracy if reference else None,
            samples=self.samples,
            seconds=time.monotonic() - started,
            seed=self.seed,
            torch=torch.__version__,
            threads=torch.get_num_threads(),
        )

    def _judge(self, result: PartResult, reference: Reference | None) -> PartResult:
        model = load(self.folder / result.name)
        if reference is not None:
            compared = result.name in SAME_STEPS or result.name in SAME_STEPS.values()
            checkpoints = listing(self.folder / result.name / "checkpoints")
            progress = []
            for path in halvings(checkpoints, self.milestones if compared else 1):
                numbers, images = evaluate(load(path), reference, count=self.samples, seed=self.seed)
                progress.append((read(path).step, numbers.accuracy, numbers.frechet))
            result = result.with_progress(progress)
        else:
            images = model.sample(model.make_labels(64, balanced=True, seed=self.seed), 64, seed=self.seed)
        save_grid(images[: 6 * self._columns()], self.folder / f"samples-{result.name}.png", columns=self._columns())
        return result

    def _columns(self) -> int:
        classes = self.dataset.num_classes
        return classes if 2 <= classes <= 16 else 10

    def _shown_indices(self) -> Any:
        """Real images in the order of the samples: one class per column."""
        import numpy as np

        count = min(len(self.dataset), 6 * self._columns())
        if self._columns() != self.dataset.num_classes:
            return np.arange(count)
        by_class = [np.flatnonzero(self.dataset.labels == c)[:6] for c in range(self.dataset.num_classes)]
        rows = min(len(indices) for indices in by_class)
        return np.stack([indices[:rows] for indices in by_class], axis=1).ravel()


def at_length(config: RunConfig, steps: int) -> RunConfig:
    """The configuration trained for another number of steps: everything that counts steps is scaled along."""
    factor = steps / config.training.steps

    def scaled(number: int) -> int:
        return max(1, round(number * factor))

    optimizer = config.optimizer.model_copy(
        update={
            "warmup_steps": scaled(config.optimizer.warmup_steps),
            "lr_steps": [(scaled(step), lr) for step, lr in config.optimizer.lr_steps],
        }
    )
    training = config.training.model_copy(
        update={
            "steps": steps,
            "log_every": max(1, steps // 50),
            # A shorter run needs a shorter memory: the same share of its steps, at least half of the last one.
            "ema": [max(0.5, 1 - (1 - decay) / min(1.0, factor)) for decay in config.training.ema],
            "preview_every": scaled(config.training.preview_every) if config.training.preview_every else 0,
            "checkpoint_every": scaled(config.training.checkpoint_every),
        }
    )
    objective = config.objective
    if objective.kind == "consistency":
        objective = objective.model_copy(update={"d": scaled(objective.d)})
    return config.model_copy(update={"optimizer": optimizer, "training": training, "objective": objective})


def with_milestones(config: RunConfig, milestones: int) -> RunConfig:
    """Checkpoints at equal distances, all of them kept: enough for `milestones` halvings of the training."""
    count = 2 ** (milestones - 1)
    every = -(-config.training.steps // count)
    training = config.training.model_copy(update={"checkpoint_every": every, "keep": max(2, count)})
    return config.model_copy(update={"training": training})


def halvings(checkpoints: list[Path], milestones: int) -> list[Path]:
    """The last checkpoint, the one halfway to it, and so on; earliest first."""
    indices = {len(checkpoints) // 2**k - 1 for k in range(milestones)}
    return [checkpoints[i] for i in sorted(indices) if i >= 0]


def seconds_per_step(config: RunConfig, dataset: ImageDataset, timed: int = 6) -> float:
    """Median time of a training step, after two that warm up; nothing is written."""
    objective = build_objective(config)
    trainer = Trainer(objective, dataset, config, Path())
    batches = iter(BatchLoader(dataset, batch_size=config.training.batch_size, seed=config.seed))
    times = []
    for i in range(2 + timed):
        begin = time.perf_counter()
        result = trainer.train_step(next(batches))
        float(result.losses["grad_norm"])  # waits for an accelerator
        if i >= 2:
            times.append(time.perf_counter() - begin)
    return sorted(times)[timed // 2]


def say(text: str) -> None:
    Console(stderr=True, highlight=False).print(text)
