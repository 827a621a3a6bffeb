"""What all arms of `ten_minutes.py` share: options, images, configurations and the clock."""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

from epg.cli import configure
from epg.config.objectives import Stage
from epg.config.settings import RunConfig
from epg.config.validation import check
from epg.data.configured import open_training_data
from epg.data.loading.base import CachedDataset
from epg.distributed import pick_device
from epg.objectives.base import normalizer_for
from epg.quickstart.length import at_length
from epg.training.throughput import synchronize

Arm = Literal["pretrained", "scratch", "one-step"]
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
    """Judge these runs, or archives of samples (.npz), instead of training."""
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
