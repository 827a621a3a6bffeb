"""From a run folder, checkpoint or export to a `Generator` with the weights to sample with."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from epg.config import RunConfig, parse
from epg.denoiser import Denoiser
from epg.errors import ArtefactError
from epg.generator import Generator
from epg.networks import EPG
from epg.networks.build import build_epg
from epg.objectives.base import normalizer_for
from epg.training import export
from epg.training.artefact import match
from epg.training.checkpoint import find


def generator_of(config: RunConfig, network: EPG, class_names: Sequence[str] = ()) -> Generator:
    """A generator around a network that was trained with this configuration."""
    denoiser = Denoiser(
        network,
        "edm" if config.stage == "consistency" else "x",
        sigma_min=config.shift * config.noise.sigma_min,
        sigma_data=config.noise.sigma_data,
    )
    return Generator(
        denoiser,
        normalizer_for(config),
        config.noise,
        config.shift,
        config.data.image_size,
        config.sampling,
        tuple(class_names),
    )


def load(path: str | Path, *, ema: float | None = None, device: torch.device | str = "cpu") -> Generator:
    """The generator of a run folder or checkpoint, with averaged weights.

    Args:
        path: run folder (its newest valid checkpoint), `checkpoints/step-...` folder, or `export` folder.
        ema: which decay to load; None is the run's first, or the trained weights where there is none.

    Raises:
        ArtefactError: no valid checkpoint, one of a pre-training run, or a decay it does not have.
    """
    found = _weights_of(Path(path), ema)
    if found.config.stage == "pretraining":
        raise ArtefactError(
            f"{path}: a pre-trained encoder cannot sample. Fine-tune it first: epg finetune RECIPE --encoder {path}"
        )
    network = build_epg(found.config.model, found.config.data)
    match(found.weights, network.state_dict(), str(path), types=False)
    network.load_state_dict(found.weights)
    return generator_of(found.config, network.eval().to(device), found.class_names)


@dataclass(frozen=True)
class _Found:
    config: RunConfig
    weights: dict[str, Tensor]
    class_names: Sequence[str]


def _weights_of(path: Path, ema: float | None) -> _Found:
    """The weights to sample with: of an export, or of a checkpoint where the path leads to one."""
    if not (path / "checkpoints").is_dir() and export.is_export(path / export.FOLDER):
        path = path / export.FOLDER
    if export.is_export(path):
        exported = export.read(path)
        if ema is not None and exported.kind != f"ema-{ema}":
            raise ArtefactError(f"{path}: no EMA with decay {ema}; it has {exported.kind}")
        return _Found(exported.config, exported.tensors(), exported.class_names)
    found = find(path)
    config = parse(found.state["config"], str(found.path))
    decays = config.training.ema
    if ema is not None and ema not in decays:
        raise ArtefactError(f"{path}: no EMA with decay {ema}; it has {decays or 'none'}")
    if config.stage == "pretraining":
        weights = {}
    elif decays:
        weights = found.tensors(f"ema-{decays[0] if ema is None else ema}")
    else:
        prefix = "network."
        weights = {k.removeprefix(prefix): v for k, v in found.tensors("model").items() if k.startswith(prefix)}
    return _Found(config, weights, found.state["class_names"])
