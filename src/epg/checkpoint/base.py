"""From a trained generator to the next stage: its whole network, averaged weights, where a run begins (`--from`)."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from epg.checkpoint.handover import handed_over
from epg.checkpoint.loading import open_weights
from epg.checkpoint.refit import SPECTRUM, Refit, refit
from epg.config.objectives import KINDS, ObjectiveConfig
from epg.config.settings import RunConfig
from epg.cost.shape import shape_of
from epg.data.views.normalize import Normalizer
from epg.errors import ArtefactError, refuse_missing
from epg.generator import Generator
from epg.objectives.base import normalizer_for


@dataclass(frozen=True)
class Base:
    """A generator to begin with, and where it comes from."""

    source: Path
    generator: Generator
    encoder: Path | None
    """The encoder of stage 1 that it once began with, where its run says so."""


@dataclass(frozen=True)
class Beginning:
    """A generator's weights for the network of a run."""

    base: Base
    weights: Refit
    settings: dict[str, tuple[Any, Any]]
    """Settings that touch what the network has seen, and differ: the generator's and the run's."""

    def record(self) -> dict[str, Any]:
        """What `handover.json` keeps of it: every tensor of the network is in one of the lists."""
        encoder = {} if self.base.encoder is None else {"encoder": str(self.base.encoder)}
        parts = {"kept": self.weights.kept, "resized": self.weights.resized, "new": list(self.weights.new)}
        return {"source": str(self.base.source), **encoder, **parts, "settings": self.settings}

    def report(self) -> str:
        """What was taken over, for the user to read."""
        weights = self.weights
        size = sum(weights.tensors[name].numel() for name in weights.kept)
        lines = [f"generator from {self.base.source}: {len(weights.kept)} tensors ({size:,} numbers) kept"]
        for told in dict.fromkeys(told for told in weights.resized.values() if told != weights.classes):
            names = [name for name, other in weights.resized.items() if other == told]
            lines.append(f"  resized: {told}: {', '.join(names)}")
        if weights.classes:
            lines.append(f"  classes: {weights.classes}")
        for measured, begins in ((True, "are measured of this run's images"), (False, "begin at 0")):
            if names := [name for name in weights.new if name.startswith(SPECTRUM) == measured]:
                lines.append(f"  new: {', '.join(names)}, which {begins}")
        lines += [f"  {name}: {old:g} in the generator, {new:g} here" for name, (old, new) in self.settings.items()]
        return "\n".join(lines)


def read_base(path: Path) -> Base:
    """The generator of a run, checkpoint, export, pipeline folder or repository of the Hub. Raises ArtefactError."""
    refuse_missing(path, "--from ")
    if path.is_file():
        raise ArtefactError(
            f"--from {path}: a file; if it is of the authors' release, take it over once: epg convert {path} --out "
            "FOLDER, then --from FOLDER"
        )
    opened = open_weights(path)
    folders = [path, path.parent, path.parent.parent]  # a checkpoint or an export lies in its run's folder
    encoders = [found for folder in folders if (found := handed_over(folder)) is not None]
    return Base(opened.path, opened.generator(), encoders[0] if encoders else None)


def begin_with(base: Base, config: RunConfig, class_names: tuple[str, ...]) -> Beginning:
    """The generator for the network of a resolved configuration. Raises ArtefactError listing what cannot fit."""
    model = base.generator
    new = shape_of(config.model, config.data, config.gaussians, config.internal)
    old = model.denoiser.network.shape
    wrong = [(name, a, b) for name, a, b in fixed(base, config) if a != b]
    if old.sample_size == new.sample_size and model.shift != config.shift:
        wrong.append(("noise.shift", model.shift, config.shift))
    if wrong:
        listed = "\n".join(f"  {name}: {a} in the generator, {b} here" for name, a, b in wrong)
        cures = list(dict.fromkeys(cure(name, value, config) for name, value, _ in wrong))
        raise ArtefactError(
            f"--from {base.source}: does not fit this run:\n{listed}\nUse the recipe that the generator was trained "
            f"with, or as it has them: {' '.join(cures)}. Classes, image size and patch size may differ."
        )
    tensors = model.denoiser.network.state_dict()
    weights = refit(tensors, old, new, model.class_names, class_names, f"--from {base.source}")
    seen = {"data.image_size": (old.sample_size, new.sample_size), "noise.shift": (model.shift, config.shift)}
    return Beginning(base, weights, {name: pair for name, pair in seen.items() if pair[0] != pair[1]})


def fixed(base: Base, config: RunConfig) -> Iterator[tuple[str, Any, Any]]:
    """What must be alike, by the setting: the generator's and the run's."""
    model, shape = base.generator, base.generator.denoiser.network.shape
    yield "objective.parameterization", model.denoiser.parameterization, config.objective.predicts
    yield "data.channels", shape.in_channels, config.data.channels
    yield "data.normalization", called(model.normalizer), called(normalizer_for(config))
    yield "noise.sigma_data", model.denoiser.sigma_data, config.noise.sigma_data
    wanted = config.model
    yield "model.encoder.depth", shape.depth, wanted.encoder.depth
    yield "model.encoder.width", shape.encoder_width, wanted.encoder.width
    yield "model.encoder.heads", shape.encoder_heads, wanted.encoder.heads
    yield "model.decoder.width", shape.decoder_width, wanted.decoder.width
    yield "model.decoder.heads", shape.decoder_heads, wanted.decoder.heads
    yield "model.mlp_ratio", shape.mlp_ratio, wanted.mlp_ratio
    yield "model.stem", shape.stem, wanted.stem


def cure(name: str, value: Any, config: RunConfig) -> str:
    """The flag that makes a setting what the generator has; the stages that can have it where this one cannot."""
    section, _, key = name.partition(".")
    if section == "objective":
        able = [stage for stage, kind in KINDS.items() if takes(kind, key, value)]
        if config.stage not in able:
            return f"--stage {' or '.join(able)}"
    return f"--{name.replace('_', '-')} {value}"


def takes(kind: type[ObjectiveConfig], key: str, value: Any) -> bool:
    """Whether a setting of an objective, one of several choices, can have this value."""
    return key in kind.model_fields and value in get_args(kind.model_fields[key].annotation)


def called(normalizer: Normalizer) -> str:
    """The setting that means this map, or its numbers."""
    known = {Normalizer.imagenet(): "imagenet", Normalizer.symmetric(normalizer.channels): "symmetric"}
    return known.get(normalizer, f"mean {normalizer.mean}, std {normalizer.std}")
