"""Weights to use, verified and opened once: of a run folder, checkpoint, export, pipeline folder or Hub repository."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, overload

import torch
from torch import Tensor

from epg.checkpoint import export
from epg.checkpoint.checkpoint import Checkpoint, find
from epg.checkpoint.handover import split
from epg.config.settings import RunConfig, parse
from epg.errors import ArtefactError
from epg.features import TrainedEncoder
from epg.generator import Generator
from epg.networks import EPG
from epg.networks.build import build_encoder, build_epg, without_numbers
from epg.objectives.base import denoiser_of, normalizer_for
from epg.pipeline import folder as pipeline
from epg.storage import hub
from epg.storage.artefact import digest_of, match


def generator_of(
    config: RunConfig, network: EPG, class_names: Sequence[str] = (), class_counts: Sequence[int] = ()
) -> Generator:
    """A generator around a network that was trained with this configuration.

    Classes beyond those of the images (`model.num_classes`) have names too, so that names and numbers go together.
    """
    beyond = range(len(class_names), config.model.num_classes or 0) if class_names else ()
    return Generator(
        denoiser_of(network, config),
        normalizer_for(config),
        config.noise,
        config.shift,
        config.data.image_size,
        config.sampling,
        (*class_names, *(f"unnamed {number}" for number in beyond)),
        tuple(class_counts),
    )


@overload
def load(
    path: str | Path, *, encoder: Literal[False] = False, ema: float | None = None, device: torch.device | str = "cpu"
) -> Generator: ...
@overload
def load(
    path: str | Path, *, encoder: Literal[True], ema: float | None = None, device: torch.device | str = "cpu"
) -> TrainedEncoder: ...
def load(
    path: str | Path, *, encoder: bool = False, ema: float | None = None, device: torch.device | str = "cpu"
) -> Generator | TrainedEncoder:
    """The generator of a run folder, checkpoint, export, pipeline folder or repository of the Hub; or its encoder.

    Args:
        path: run folder (its newest valid checkpoint), `checkpoints/step-...` folder, `export` folder, pipeline folder,
            or `user/repo[@revision]`, of which configuration and weights are downloaded, never code.
        encoder: the encoder alone, for its `features`: also of a run of stage 1, which has nothing else.
        ema: which decay to load; 0 is the weights as trained, None what the run samples with (its first average).

    Raises:
        ArtefactError: nothing valid there, a pre-trained encoder where a generator is asked for, or a decay it does not
            have.
    """
    weights = open_weights(path, ema)
    if not encoder:
        return weights.generator(device)
    return weights.encoder(device) if isinstance(weights, Trained) else weights.generator(device).encoder


def open_weights(path: str | Path, ema: float | None = None) -> "Trained | pipeline.Saved":
    """What `load` takes, verified, with all that is recorded of it; raises what `load` does, but of an encoder."""
    place = hub.local(path)
    if not pipeline.is_pipeline(place):
        return read_trained(place, ema)
    if ema is not None:
        raise ArtefactError(f"{path}: a pipeline folder holds one set of weights; leave out --ema")
    return pipeline.read(place)


@dataclass(frozen=True)
class Trained:
    """Weights of a run with all that was recorded of them."""

    path: Path
    config: RunConfig
    step: int
    kind: str
    """Which weights these are: an average such as ema-0.9999, or the trained ones, `model`."""
    class_names: tuple[str, ...]
    class_counts: tuple[int, ...]
    tensors: Callable[[], dict[str, Tensor]]
    """The network's state dict, on the CPU: an EPG's, or an RCM's after pre-training. Raises ArtefactError."""
    checkpoint: Checkpoint | None = None
    """That the weights are of; None of an export, or a file of the release."""
    exported: tuple[str, ...] = ()
    """What an export says of `trained_in`."""

    def trained_in(self) -> tuple[str, ...]:
        """Sha256 of the encoders in whose features the loss was measured, and then of its own: these judge nothing.

        Raises ArtefactError.
        """
        found = self.exported
        if self.checkpoint is not None and self.config.objective.frozen_encoder:
            found = tuple(export.frozen_encoders(self.checkpoint.tensors("model")))
        if not found:
            return ()
        own = {n.removeprefix("encoder."): t.float() for n, t in self.tensors().items() if n.startswith("encoder.")}
        return tuple(dict.fromkeys([*found, digest_of(own)]))

    def other(self, ema: float | None) -> "Trained":
        """The weights of another decay in the same checkpoint, which is not verified again. Raises ArtefactError."""
        return read_trained(self.path, ema) if self.checkpoint is None else of_checkpoint(self.checkpoint, ema)

    def generator(self, device: torch.device | str = "cpu") -> Generator:
        """The generator of stage 2, ready to sample; it needs no `torch.no_grad()`. Raises ArtefactError."""
        if not self.config.objective.samples:
            raise ArtefactError(
                f"{self.path}: a pre-trained encoder cannot sample. Fine-tune it first: epg finetune RECIPE --encoder "
                f"{self.path} (in Python, epg.load(..., encoder=True) gives its features)"
            )
        with without_numbers():
            config = self.config
            network = build_epg(config.model, config.data, config.gaussians, config.internal)
        weights = self.tensors()
        match(weights, network.state_dict(), str(self.path), types=False)
        network.load_state_dict({name: t.float() for name, t in weights.items()}, assign=True)
        network = network.eval().requires_grad_(False).to(device)
        return generator_of(self.config, network, self.class_names, self.class_counts)

    def encoder(self, device: torch.device | str = "cpu") -> TrainedEncoder:
        """The encoder of any stage, ready to give features. Raises ArtefactError."""
        config = self.config
        if config.objective.samples:
            return self.generator(device).encoder
        with without_numbers():
            network = build_encoder(config.model, config.data)
        weights = split(self.path, self.tensors(), "encoder.").tensors
        match(weights, network.state_dict(), str(self.path), types=False)
        network.load_state_dict({name: t.float() for name, t in weights.items()}, assign=True)
        network = network.eval().requires_grad_(False).to(device)
        return TrainedEncoder(network, normalizer_for(config), config.noise, config.shift)


def read_trained(path: Path, ema: float | None = None) -> Trained:
    """The weights to use of a run folder, checkpoint or export. Raises ArtefactError."""
    if not (path / "checkpoints").is_dir() and export.is_export(path / export.FOLDER):
        path = path / export.FOLDER
    if export.is_export(path):
        exported = export.read(path)
        if ema is not None and exported.kind != kind_of(ema):
            hint = "" if ema else ". A run's checkpoints have the trained weights"
            raise ArtefactError(f"{path}: no {described(ema)}; it has {exported.kind}{hint}")
        return Trained(
            exported.path,
            exported.config,
            exported.step,
            exported.kind,
            exported.class_names,
            exported.class_counts,
            exported.tensors,
            exported=exported.trained_in,
        )
    return of_checkpoint(find(path), ema)


def of_checkpoint(found: Checkpoint, ema: float | None = None) -> Trained:
    """The weights to use of a checkpoint. Raises ArtefactError."""
    config = parse(found.state["config"], str(found.path))
    kind = config.weights if ema is None else kind_of(ema)
    if kind != "model" and kind not in found.groups:
        raise ArtefactError(
            f"{found.path}: no {described(ema)}; it has {config.training.ema or 'none'}, and 0, as trained"
        )

    def network_tensors() -> dict[str, Tensor]:
        state = found.tensors("model")
        return {k.removeprefix(export.PREFIX): t for k, t in state.items() if k.startswith(export.PREFIX)}

    tensors = network_tensors if kind == "model" else partial(found.tensors, kind)
    names, counts = tuple(found.state["class_names"]), tuple(found.state["class_counts"])
    return Trained(found.path, config, found.step, kind, names, counts, tensors, found)


def kind_of(ema: float) -> str:
    """The name of the weights of a decay; 0 is the trained ones."""
    return f"ema-{ema}" if ema else "model"


def described(ema: float | None) -> str:
    return f"EMA with decay {ema}" if ema else "weights as trained"
