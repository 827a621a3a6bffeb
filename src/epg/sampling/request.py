"""What to draw and how, checked."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from epg.checkpoint.loading import Trained, load, open_weights
from epg.config.sections import SamplingConfig
from epg.distributed import pick_device
from epg.drawing import SETTINGS, jumping, problems, settled
from epg.errors import UserError
from epg.generator import Generator
from epg.pipeline.folder import Saved
from epg.sampling.animation import Kind
from epg.sampling.interpolation import rows_of
from epg.storage.artefact import digest_of

FLAGS = {name: f"--{name}" for name in SETTINGS}
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
    cuda_graphs: bool = False
    batch_size: int = 64
    device: str = "auto"
    npz: bool = False
    animation: Kind | None = None
    interpolate: int | None = None
    """Pictures between one image and the next, see `epg.sampling.interpolation`."""
    scales: Sequence[float] = ()
    """Of guidance, at which the images are shown beside each other, see `epg.sampling.gallery`."""


@dataclass(frozen=True)
class Opened:
    """A request and what it is drawn with, checked together; checkpoints were verified, and models read, once."""

    request: Request
    model: Generator
    guide: Generator | None
    sampling: SamplingConfig
    classes: list[int]
    """Numbers of those that were asked for; empty for all."""
    labels: Tensor | None
    """(count,), one for each image."""
    hashes: dict[str, str | None]
    """Of the `weights` as they were trained, and the `guide`'s."""
    source: Trained | Saved | None = None
    """Where the model's weights come from; None where it was in memory."""
    scaled: Sequence[SamplingConfig] = ()
    """`sampling` at each of the request's scales."""

    def place(self) -> None:
        """Moves the models to the device and into the precision that were asked for. Raises UserError."""
        device = pick_device(self.request.device)
        for model in (self.model, *([] if self.guide is None else [self.guide])):
            model.to(device, self.request.dtype)


def open_request(path: str | Path | Trained | Saved, request: Request) -> Opened:
    """Opens what a request is drawn with: the weights in `path`, and the guide's. Raises ArtefactError, UserError."""
    source = open_weights(path, request.ema) if isinstance(path, str | Path) else path
    guide = None if request.guide is None else load(request.guide)
    return replace(fitted(source.generator(), request, guide), source=source)


def fitted(model: Generator, request: Request, guide: Generator | None = None) -> Opened:
    """A request to models in memory. Raises UserError for what does not fit together."""
    sampling = changed(model, request.changes, guided=guide is not None)
    if request.changes.get("guide") == "internal" and sampling.guidance == 1:
        raise UserError("--guide internal: does nothing without --guidance, the scale; try --guidance 1.3")
    if guide is not None:
        check_guide(model, guide)
    scaled = [sampling.model_copy(update={"guidance": scale}) for scale in request.scales]
    for scale in request.scales:
        asked = {**request.changes, "guidance": scale}
        changed(model, asked, guided=guide is not None and scale != 1, names=FLAGS | {"guidance": "--scales"})
    classes = model.classes.numbers(request.classes)
    if request.interpolate is not None:
        rows_of(request.count, len(classes or model.classes.usual))
    labels = model.make_labels(request.count, classes=classes, balanced=request.labels == "balanced", seed=request.seed)
    hashes = {
        name: None if part is None else digest_of(part.denoiser.state_dict())
        for name, part in (("weights", model), ("guide", guide))
    }
    return Opened(request, model, guide, sampling, classes, labels, hashes, scaled=scaled)


def changed(
    model: Generator, changes: Mapping[str, Any], guided: bool = False, names: Mapping[str, str] = FLAGS
) -> SamplingConfig:
    """The model's sampling settings with the given fields replaced, checked. Raises UserError.

    Args:
        guided: a weaker model guides (autoguidance), which acts at every level unless an interval is given.
        names: what errors call the settings.
    """
    jumps = jumping(model.sampling.sampler)
    saved = {name: getattr(model.sampling, name) for name in SETTINGS}
    if guided:
        saved |= {"interval": (0.0, 2 * model.noise.sigma_max), "guide": "unconditional"}
    settings = settled(saved, changes, jumps)
    found = problems(
        settings,
        names,
        jumps=jumps,
        conditional=model.num_classes > 0,
        noise=(model.noise.sigma_min, model.noise.sigma_max),
        internal=model.denoiser.network.shape.internal,
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
    number = len(classes or model.classes.usual)
    of = f"{'' if classes else 'all '}{number} class{'es' if number > 1 else ''}"
    if labels == "balanced":
        return f"{of} in turn"
    return f"{of} at random, " + ("as often as in training" if model.class_counts else "all equally likely")


def columns_for(classes: Sequence[int], request: Request) -> int | None:
    """One column of the grid per class where that is a good shape."""
    fits = request.labels == "balanced" and 3 <= len(classes) <= WIDEST_GRID
    return len(classes) if fits and request.count > 2 * len(classes) else None
