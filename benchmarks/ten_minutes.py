"""What a few minutes on one GPU give: a generator of 32x32 photographs, from nothing to judged pictures.

    python benchmarks/ten_minutes.py --data data/cifar10 --seconds 480 --out ten-minutes

`--data` has a train and a test split. Every arm trains for an equal share of the time, everything included (compiling
too): `scratch` a diffusion model, `pretrained` an encoder first (a quarter of its time) and then the diffusion model,
`one-step` the same with a consistency model. The steps are planned from the measured time of a step, and training stops
by the clock. Into `--out` go grids of samples (guidance 1 and 2), beside each sample the nearest training image, the
runs' logs, and `ten_minutes.json`: denoising errors relative to the best linear denoiser's, and FD-EfficientNet against
the training images, of the samples, of the untrained class-wise Gaussian (the linear part alone), and of real test
images (the floor), all of equal counts. Any flag of the recipe's diffusion stage works (`--optimizer.kind adamw`).
`--judge RUN` does the second half for a run that exists.
"""

import contextlib
import dataclasses
import json
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor

from epg.checkpoint.loading import load, read
from epg.cli import configure
from epg.config.settings import RunConfig, Stage
from epg.config.validation import check
from epg.data.base import CachedDataset
from epg.data.configured import open_training_data
from epg.distributed import pick_device
from epg.errors import InterruptedRunError
from epg.evaluation.extraction import Collector, extract
from epg.evaluation.extractors import FEATURES, Extractor, choices, open_extractor
from epg.evaluation.extractors.indomain import images_and_labels
from epg.evaluation.linear import PREFIX
from epg.evaluation.metrics import precision_recall, statistics
from epg.evaluation.metrics.frechet import Moments, frechet_distance
from epg.evaluation.metrics.manifolds import Manifold
from epg.evaluation.nearest import nearest
from epg.evaluation.sources import TensorSource
from epg.generator import Generator
from epg.networks import Spectrum
from epg.objectives.base import normalizer_for
from epg.quickstart.length import at_length
from epg.randomness import normal
from epg.runs import prepare_run
from epg.sampling.pictures import save_grid
from epg.training.loop import Trainer
from epg.training.spectra import blocks, gaussians_of
from epg.training.throughput import peak_flops, synchronize, training_flops
from epg.training.tracking import read_log

Arm = Literal["pretrained", "scratch", "one-step"]
STAGES: dict[Arm, tuple[tuple[Stage, float], ...]] = {
    "pretrained": (("pretraining", 0.25), ("diffusion", 0.75)),
    "scratch": (("diffusion", 1.0),),
    "one-step": (("pretraining", 0.25), ("consistency", 0.75)),
}
WARM, TIMED = 12, 20  # steps before timing, compiling included, and timed ones
MARGIN = 0.97  # of the time that is planned with: the rate is measured, the end is not
TINY = [
    *("--model.encoder.depth", "1", "--model.encoder.width", "32", "--model.encoder.heads", "2"),
    *("--model.decoder.width", "32", "--model.decoder.heads", "2", "--model.patch-size", "8", "--model.stem", "4"),
    *("--model.projector-hidden", "32", "--training.batch-size", "32", "--training.compile", "False"),
    *("--training.precision", "fp32", "--sampling.steps", "4"),
]


@dataclasses.dataclass(frozen=True)
class Options:
    """A generator of photographs from a few minutes of training, and how good it is."""

    data: str
    """Images with a train and a test split, at least 32 pixels."""
    seconds: float = 480.0
    """For everything."""
    out: Path = Path("ten-minutes")
    arms: tuple[Arm, ...] = ("pretrained", "scratch")
    judge: tuple[Path, ...] = ()
    """Judge these runs instead of training."""
    recipe: str = "photos32"
    samples: int = 5000
    """Of each generator, for its distance; as many real and Gaussian images."""
    guidance: tuple[float, ...] = (1.0, 2.0)
    interval: tuple[float, float] | None = None
    """Unshifted levels in which guidance acts; the recipe's if not given."""
    features: Literal["efficientnet", "none"] = "efficientnet"
    device: str = "auto"
    tiny: bool = False
    """A network of milliseconds, for trying the script."""


@dataclasses.dataclass
class Study:
    """What all arms share: options, images, what they are compared with, and the clock."""

    options: Options
    flags: list[str]
    started: float = dataclasses.field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        self.device = pick_device(self.options.device)
        config = self.config("diffusion")
        self.train = open_training_data(config.data)
        self.test = open_training_data(config.data, split="test")
        self.normalizer = normalizer_for(config)
        assert isinstance(self.train, CachedDataset)
        self.count = min(self.options.samples, len(self.test))
        self.labels = torch.arange(self.count) % max(1, self.train.num_classes)

    @property
    def elapsed(self) -> float:
        synchronize(self.device)
        return time.perf_counter() - self.started

    def config(self, stage: Stage, steps: int | None = None) -> RunConfig:
        """The recipe's configuration of a stage for these images and this device; at its length where one is named."""
        own = self.flags if stage == "diffusion" else [f for f in self.flags if f.startswith("--model.")]
        flags = [*(TINY if self.options.tiny else []), *own]
        if stage == "pretraining":
            flags = without(flags, "--sampling.steps")
        flags += ["--data.source", self.options.data, "--training.device", str(self.device)]
        config = configure(self.options.recipe, stage, flags)
        quiet = {"preview_every": 0, "checkpoint_every": 10**9, "trackers": []}
        if steps is None:
            return config.model_copy(update={"training": config.training.model_copy(update={**quiet, "steps": 10**6})})
        config = at_length(config, steps)
        judged = config.evaluation.model_copy(update={"linear_every": max(1, steps // 8)})
        training = config.training.model_copy(update=quiet)
        return check(config.model_copy(update={"training": training, "evaluation": judged}))


def without(flags: Sequence[str], name: str) -> list[str]:
    """Flags without one and its value."""
    kept = list(flags)
    while name in kept:
        place = kept.index(name)
        del kept[place : place + 2]
    return kept


# Training -------------------------------------------------------------------------------------------------------------


class MeasuredError(Exception):
    """Ends the calibration."""


def step_seconds(study: Study, config: RunConfig, encoder: Path | None) -> tuple[float, float]:
    """Seconds of preparing a run, and of a step of the loop as it is, measured after everything is compiled."""
    begun, done = study.elapsed, 0
    with tempfile.TemporaryDirectory() as folder:
        trainer = prepare_run(config, Path(folder), encoder=encoder, dataset=study.train).trainer
        preparing = study.elapsed - begun

        def step(batches: Any) -> Any:
            nonlocal begun, done
            if done == WARM:
                begun = study.elapsed
            if done == WARM + TIMED:
                raise MeasuredError
            done += 1
            return Trainer.train_step(trainer, batches)

        trainer.train_step = step  # type: ignore[method-assign]
        with contextlib.suppress(MeasuredError):
            trainer.run()
    return preparing, (study.elapsed - begun) / TIMED


def train_for(study: Study, stage: Stage, seconds: float, folder: Path, encoder: Path | None) -> dict[str, Any]:
    """Trains a stage into a run folder for this time, calibration included. Returns what it did."""
    begun = study.elapsed
    preparing, each = step_seconds(study, study.config(stage), encoder)
    deadline = begun + seconds
    steps = max(20, int(MARGIN * (deadline - study.elapsed - preparing) / each))
    config = study.config(stage, steps)
    trainer = prepare_run(config, folder, encoder=encoder, dataset=study.train).trainer

    def step(batches: Any) -> Any:
        if trainer.step % 10 == 9 and study.elapsed > deadline:
            trainer.signals.received = signal.SIGTERM
        return Trainer.train_step(trainer, batches)

    trainer.train_step = step  # type: ignore[method-assign]
    with contextlib.suppress(InterruptedRunError):
        trainer.run()
    log = read_log(folder)
    flops = training_flops(trainer.config)
    rate = config.training.batch_size / each
    return {
        "stage": stage,
        "seconds": study.elapsed - begun,
        "planned_steps": steps,
        "steps": trainer.step,
        "batch_size": config.training.batch_size,
        "images": trainer.step * config.training.batch_size,
        "step_seconds": each,
        "images_per_second": rate,
        "mfu": rate * flops / peak_flops(study.device, config.training.precision),
        "loss": log[-1]["loss"] if log else None,
        "linear": judgements(folder),
    }


def recorded(run: Path) -> dict[str, Any]:
    """What a run of the command line did."""
    trained = read(run)
    return {
        "stage": trained.config.stage,
        "steps": trained.step,
        "batch_size": trained.config.training.batch_size,
        "linear": judgements(run),
    }


def judgements(run: Path) -> list[dict[str, float]]:
    """Errors relative to the best linear denoiser's in the log of a run, by noise level."""
    lines = [line for line in read_log(run) if f"{PREFIX}mean" in line]
    return [
        {"step": line["step"], **{k.removeprefix(PREFIX): v for k, v in line.items() if k.startswith(PREFIX)}}
        for line in lines
    ]


# Judging --------------------------------------------------------------------------------------------------------------


class Judge:
    """FD-EfficientNet, precision and recall against the training images."""

    def __init__(self, study: Study, extractor: Extractor) -> None:
        self.extractor, self.study = extractor, study
        chosen = np.linspace(0, len(study.train) - 1, min(len(study.train), 4 * study.count)).astype(np.int64)
        features = self.features(images_and_labels(study.train, chosen)[0])
        self.reference: Moments = statistics(features)
        self.manifold = Manifold(features[:: max(1, len(features) // study.count)][: study.count], 3)

    def features(self, images: Tensor) -> NDArray[np.float32]:
        collected = Collector()
        extract(TensorSource(images), [self.extractor], collected)
        return collected.outputs(self.extractor.name)[FEATURES]

    def __call__(self, images: Tensor) -> dict[str, float]:
        features = self.features(images)
        shape = precision_recall(self.manifold, Manifold(features, 3))
        distance = frechet_distance(statistics(features), self.reference)
        return {"fd_efficientnet": distance, "precision": shape.precision, "recall": shape.recall}


def gaussian_images(study: Study) -> Tensor:
    """uint8 images of the class-wise Gaussian: what the linear part alone would draw."""
    spectrum = Spectrum(study.train.num_classes + 1, 3, study.train.image_size)
    parts = blocks(study.train, study.normalizer, 0)
    for name, value in gaussians_of(parts, spectrum.mean.shape, flip=True).items():
        getattr(spectrum, name).copy_(value)
    unit = normal(range(study.count), (3, study.train.image_size, study.train.image_size), "gaussian", device="cpu")
    return study.normalizer.decode(spectrum.sample(unit, study.labels))


def save_by_class(images: Tensor, labels: Tensor, file: Path) -> None:
    """A grid of the first eight images of every class."""
    count = min(len(images), 8 * (int(labels.max()) + 1))
    save_grid(images[:count][labels[:count].argsort(stable=True)], file, columns=8)


def examine(study: Study, model: Generator, name: str, judge: Judge | None) -> dict[str, Any]:
    """Grids, distances and nearest training images of a generator."""
    precision = "bf16" if study.device.type == "cuda" else "fp32"
    model.to(study.device, precision)
    guidances = study.options.guidance if model.denoiser.parameterization != "edm" else (1.0,)
    results: dict[str, Any] = {}
    for guidance in guidances:
        sampling = model.sampling.model_copy(update={"guidance": guidance})
        if study.options.interval is not None:
            sampling = sampling.model_copy(update={"interval": study.options.interval})
        batch = 32 if study.options.tiny else 500
        drawn = model.sample(study.labels, seed=0, sampling=sampling, batch_size=batch)
        save_by_class(drawn, study.labels, study.options.out / f"{name}-guidance-{guidance:g}.png")
        results[f"guidance {guidance:g}"] = {} if judge is None else judge(drawn)
    some = drawn[: min(24, len(drawn))]
    distances, places = nearest(some.flatten(1).numpy(), study.train.images.flatten(1).numpy())
    pairs = torch.stack([some, study.train.images[torch.from_numpy(places[:, 0])]], dim=1).flatten(0, 1)
    save_grid(pairs, study.options.out / f"{name}-nearest.png", columns=12)
    results["nearest_pixel_rms"] = float(np.median(distances[:, 0]) / some[0].numel() ** 0.5)
    return results


# The study ------------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> None:
    given = list(sys.argv[1:] if arguments is None else arguments)
    options, flags = tyro.cli(Options, args=given, return_unknown_args=True)
    study = Study(options, flags)
    options.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {
        "options": {
            **dataclasses.asdict(options),
            "out": options.out.name,
            "data": Path(options.data).name,
            "judge": [run.name for run in options.judge],
        },
        "flags": flags,
        "device": torch.cuda.get_device_name(study.device) if study.device.type == "cuda" else str(study.device),
        "torch": torch.__version__,
        "opening_seconds": study.elapsed,
        "arms": {},
    }
    judge = baselines(study, found) if options.features == "efficientnet" else None
    for run in options.judge:
        found["arms"][run.name] = {"stages": [recorded(run)], **examine(study, load(run), run.name, judge)}
        save(study, found)
    # Drawing takes about as long as judging; half a minute is for checkpoints and pictures.
    arms = () if options.judge else options.arms
    reserve = (4 * found.get("judging_seconds", 0.0) + min(15.0, options.seconds / 20)) * len(arms)
    share = max(0.0, options.seconds - study.elapsed - reserve) / max(1, len(arms))
    for arm in arms:
        stages, encoder = [], None
        for stage, part in STAGES[arm]:
            folder = Path(tempfile.mkdtemp(prefix=f"{arm}-{stage}-"))
            stages.append(train_for(study, stage, part * share, folder, encoder))
            encoder = folder
        found["arms"][arm] = {"stages": stages, **examine(study, load(folder), arm, judge)}
        save(study, found)
    show(found)


def baselines(study: Study, found: dict[str, Any]) -> Judge:
    """The judge, and what it says of real images and of the class-wise Gaussian's."""
    judge = Judge(study, open_extractor(choices(["efficientnet"])[0], device=study.device))
    real = images_and_labels(study.test, np.linspace(0, len(study.test) - 1, study.count).astype(np.int64))[0]
    gaussian, before = gaussian_images(study), study.elapsed
    found["real"], found["gaussian"] = judge(real), judge(gaussian)
    found["judging_seconds"] = (study.elapsed - before) / 2
    save_by_class(gaussian, study.labels, study.options.out / "gaussian.png")
    return judge


def save(study: Study, found: dict[str, Any]) -> None:
    found["seconds"] = study.elapsed
    (study.options.out / "ten_minutes.json").write_text(json.dumps(found, indent=1))


def show(found: dict[str, Any]) -> None:
    """The table."""
    title = f"{found['seconds']:.0f} s on {found['device']}, torch {found['torch']}"
    columns = ["steps x batch", "step", "MFU", "error / linear", "guidance", "FD-EfficientNet", "precision", "recall"]
    table = Table("", *columns, title=title)

    def numbers(of: dict[str, float]) -> list[str]:
        return [f"{of['fd_efficientnet']:.1f}", f"{of['precision']:.2f}", f"{of['recall']:.2f}"] if of else [""] * 3

    for name in ("real", "gaussian"):
        if name in found:
            table.add_row(name, "", "", "", "", "", *numbers(found[name]))
    for arm, results in found["arms"].items():
        for stage in results["stages"]:
            linear = " ".join(f"{v:.3f}" for k, v in (stage["linear"] or [{}])[-1].items() if k != "step")
            size = f"{stage['steps']:,} x {stage['batch_size']}"
            speed = [f"{1e3 * stage['step_seconds']:.1f} ms", f"{stage['mfu']:.0%}"] if "mfu" in stage else ["", ""]
            table.add_row(f"{arm}: {stage['stage']}", size, *speed, linear)
        for key, value in results.items():
            if key.startswith("guidance"):
                table.add_row(arm, "", "", "", "", key.removeprefix("guidance "), *numbers(value))
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
