"""What to draw and how, checked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from epg.config import SamplingConfig
from epg.errors import UserError
from epg.generator import Generator
from epg.sampling.animation import Kind

CONSISTENCY = ("one_step", "multistep")
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


def changed(sampling: SamplingConfig, changes: Mapping[str, Any], guided: bool = False) -> SamplingConfig:
    """The sampling settings with the given fields replaced, checked. `guided`: there is a guide for autoguidance."""
    new = sampling.model_copy(update=dict(changes))
    if not 2 <= new.steps <= 10_000:
        raise UserError(f"--steps {new.steps}: must be between 2 and 10000")
    if not 0 <= new.guidance < 1000:
        raise UserError(f"--guidance {new.guidance}: must be at least 0 and less than 1000; 1 is none")
    low, high = new.interval
    if not 0 <= low < high:
        raise UserError(f"--interval {low} {high}: must be 0 <= low < high")
    if guided and new.guidance == 1:
        raise UserError("--guide: does nothing without --guidance, the scale; try --guidance 1.5")
    if sampling.sampler in CONSISTENCY and new.guidance != 1 and not guided:
        raise UserError("--guidance: consistency models are trained without label dropping; leave it at 1")
    if new.sampler in CONSISTENCY and sampling.sampler not in CONSISTENCY:
        raise UserError(f"--sampler {new.sampler}: for consistency models; this is a diffusion model, try heun")
    return new


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
