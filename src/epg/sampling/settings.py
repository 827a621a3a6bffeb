"""What to draw and how, checked."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from epg import samplers
from epg.config.sections import SamplingConfig
from epg.errors import UserError
from epg.generator import Generator
from epg.sampling.animation import Kind

FLAGS = {name: f"--{name}" for name in samplers.SETTINGS}
WIDEST_GRID = 20  # classes


@dataclass(frozen=True)
class Request:
    """What to draw, and how."""

    count: int = 64
    classes: Sequence[str] = ()
    labels: Literal["balanced", "random"] = "balanced"
    seed: int = 0
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the checkpoint's sampling settings to replace."""
    guide: Path | None = None
    ema: float | None = None
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    compile: bool = False
    batch_size: int = 64
    device: str = "auto"
    npz: bool = False
    animation: Kind | None = None


def changed(model: Generator, changes: Mapping[str, Any], guided: bool = False) -> SamplingConfig:
    """The model's sampling settings with the given fields replaced, checked. Raises UserError.

    `guided`: a weaker model guides (autoguidance), which acts at every level unless an interval is given.
    """
    kind = model.denoiser.parameterization
    saved = {name: getattr(model.sampling, name) for name in samplers.SETTINGS}
    if guided:
        saved["interval"] = (0.0, 2 * model.noise.sigma_max)
    settings = samplers.settled(saved, changes, kind)
    found = samplers.problems(
        settings,
        FLAGS,
        parameterization=kind,
        conditional=model.num_classes > 0,
        noise=(model.noise.sigma_min, model.noise.sigma_max),
        guided=guided,
    )
    if guided and settings["guidance"] == 1:
        found = itertools.chain(found, ["--guide: does nothing without --guidance, the scale; try --guidance 1.5"])
    for problem in found:
        raise UserError(problem)
    return SamplingConfig(**settings)


def check_guide(model: Generator, weak: Generator) -> None:
    """Raises UserError where a guide draws other pictures than the model: predictions could not be mixed."""
    pairs = {
        "image size": (model.image_size, weak.image_size),
        "normalisation": (model.normalizer, weak.normalizer),
        "classes": (model.num_classes, weak.num_classes or model.num_classes),
        "noise shift": (model.shift, weak.shift),
    }
    different = [f"{name} {own} and {other}" for name, (own, other) in pairs.items() if own != other]
    if different:
        raise UserError(f"--guide: does not fit the checkpoint: {'; '.join(different)}")


def label_kind(model: Generator, labels: str, classes: Sequence[int]) -> str:
    """How labels are chosen, for the user to read."""
    if model.num_classes == 0:
        return "none"
    of = f"{len(classes)} classes" if classes else f"all {model.num_classes} classes"
    if labels == "balanced":
        return f"{of} in turn"
    return f"{of} at random, " + ("as often as in training" if model.class_counts else "all equally likely")


def columns_for(classes: Sequence[int], request: Request) -> int | None:
    """One column of the grid per class where that is a good shape."""
    fits = request.labels == "balanced" and 3 <= len(classes) <= WIDEST_GRID
    return len(classes) if fits and request.count > 2 * len(classes) else None
