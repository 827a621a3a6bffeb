"""Pre-train, fine-tune a diffusion and a one-step consistency model, train the same from scratch, sample, evaluate.

The budget is time: the speed of each part is measured first and the number of steps follows. The plan is written
down, so that running the same command again continues an interrupted study with the same plan.
"""

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from epg.config import RunConfig, Stage, parse
from epg.errors import UserError
from epg.evaluation.bench import Bench, Options, open_bench
from epg.evaluation.receipt import Receipt
from epg.evaluation.sources import GeneratorSource, TensorSource
from epg.evaluation.subjects import Subject
from epg.loading import generator_of, load
from epg.networks import EPG
from epg.pictures import save_grid
from epg.quickstart.length import at_length, halvings, seconds_per_step, with_milestones
from epg.quickstart.report import PartResult, StudyResult, write_report
from epg.recipe import merge, run_config
from epg.runs import build_objective, open_training_data, prepare_run, resolve
from epg.training.checkpoint import listing, read
from epg.training.lock import locked
from epg.training.tracking import read_log

MOST_SAMPLES, FEWEST_SAMPLES = 1000, 50  # per evaluation, as the budget allows
MOST_MILESTONES = 5  # evaluated at 1/16, 1/8, 1/4, 1/2 and the end: of the diffusion model and of its baseline
EVALUATION_SHARE = 0.2  # of the budget, at most
MOST_REFERENCES = 20_000  # real images that samples are compared with: enough for the statistics of 64 features
CLASSIFIER_SECONDS = 25.0
OVERHEAD_SECONDS = 20.0  # imports, checkpoints, previews, the page
BATCH = 256  # samples at once
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
        self.advice = ""
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
        self.advice = advice(steps["diffusion"], configs["diffusion"].training.steps, plan["recipe_minutes"])
        if self.advice:
            say(f"note: {self.advice}")

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
        whole = sum(configs[p.name].training.steps * seconds[SAME_STEPS.get(p.name, p.name)] for p in PARTS)
        return {
            "steps": steps,
            "recipe_minutes": (whole / MARGIN + OVERHEAD_SECONDS + evaluation) / 60,
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
        bench, floor = None, None
        if self.dataset.num_classes >= 2:
            say("\nevaluation: training a classifier on the real images")
            bench = self._bench()
        parts = []
        for part in PARTS:
            log = read_log(self.folder / part.name)
            result = PartResult(part.name, part.title, self.configs[part.name].training.steps, log)
            if part.stage != "pretraining":
                say(f"evaluation: {part.title}")
                result, receipt = self._judge(result, bench)
                floor = receipt.metrics["fd_classifier_floor"].value if receipt else None
            parts.append(result)
        shown = torch.stack([torch.from_numpy(self.dataset[int(i)][0].copy()) for i in self._shown_indices()])
        save_grid(shown, self.folder / "real.png", columns=self._columns())
        data = self.configs["diffusion"].data
        return StudyResult(
            data=str(data.source),
            recipe=self.recipe,
            image_size=data.image_size,
            images=len(self.dataset),
            class_names=tuple(self.dataset.class_names),
            parts=tuple(parts),
            floor=floor,
            classifier_accuracy=bench.extractors[0].held_out_accuracy if bench else None,
            samples=self.samples,
            seconds=time.monotonic() - started,
            seed=self.seed,
            torch=torch.__version__,
            threads=torch.get_num_threads(),
            advice=self.advice,
        )

    def _bench(self) -> Bench:
        """What all generators are judged with: a classifier of the data's own labels, and real images."""
        data = self.configs["diffusion"].data
        if len(self.dataset) > MOST_REFERENCES:
            data = data.model_copy(update={"fraction": data.fraction * MOST_REFERENCES / len(self.dataset)})
        shape = (1, self.dataset.channels, self.dataset.image_size, self.dataset.image_size)
        like_samples = Subject(TensorSource(torch.zeros(shape, dtype=torch.uint8)), data=data)
        options = Options(["classifier"], seed=self.seed, batch_size=BATCH)
        return open_bench(like_samples, str(self.folder), None, ["accuracy", "fd"], None, options)

    def _judge(self, result: PartResult, bench: Bench | None) -> tuple[PartResult, Receipt | None]:
        """The part with its numbers, at several steps where parts are compared; the receipt of the last."""
        folder, receipt = self.folder / result.name, None
        samples = self._samples(folder)
        if bench is not None:
            compared = result.name in SAME_STEPS or result.name in SAME_STEPS.values()
            progress = []
            for path in halvings(listing(folder / "checkpoints"), self.milestones if compared else 1):
                samples = self._samples(path)
                receipt = bench.judge(Subject(samples))
                assert receipt is not None
                accuracy, distance = (receipt.metrics[key].value for key in ("accuracy", "fd_classifier"))
                progress.append((read(path).step, accuracy, distance))
            result = result.with_progress(progress)
        if receipt is not None:
            receipt.write(folder / "evaluation.json")
        shown = samples.read(0, min(samples.count, 6 * self._columns()))
        save_grid(shown, self.folder / f"samples-{result.name}.png", columns=self._columns())
        return result, receipt

    def _samples(self, path: Path) -> GeneratorSource:
        model = load(path)
        labels = model.make_labels(self.samples, balanced=True, seed=self.seed)
        return GeneratorSource(model, self.samples, labels, self.seed, batch_size=BATCH, details={"name": path.name})

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


def advice(steps: int, recipe: int, minutes: float) -> str:
    """What to expect of a training far shorter than the recipe's, and the budget for all of it; else nothing."""
    if steps >= recipe / 2:
        return ""
    return (
        f"{steps:,} steps of diffusion are {steps / recipe:.0%} of the recipe's {recipe:,}; samples will look "
        f"unfinished. All of them take about --minutes {5 * math.ceil(minutes / 5)} on this machine."
    )


def say(text: str) -> None:
    Console(stderr=True, highlight=False).print(text)
