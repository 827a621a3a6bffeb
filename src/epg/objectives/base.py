"""What the training loop knows of a stage: what a step draws, and a module that makes losses of it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from epg.config.sections import NoiseConfig
from epg.config.settings import RunConfig
from epg.data.loading.base import ImageDataset
from epg.data.loading.loader import Batch
from epg.data.views.augment import random_flip
from epg.data.views.normalize import Normalizer
from epg.denoiser import Denoiser
from epg.networks import EPG, Encoder, Spectrum
from epg.networks.build import build_encoder, build_epg
from epg.objectives.diagnostics import by_quarter
from epg.randomness import Draws
from epg.schedule import input_scale, time_condition

Drawn = dict[str, Tensor]
"""All that the losses of a step are a function of, beside the weights, by name: images, labels, random numbers, and
what the schedules say."""
Losses = dict[str, Tensor]
"""Scalars: `loss` is what is minimised, the rest are its terms, and terms by noise level (`by_quarter`)."""
SHOWN_LEVELS = (0.1, 0.5, 2.0)  # unshifted, of pictures of what is learnt from


@dataclass(frozen=True)
class Terms:
    """What an objective is made of: the terms of its loss for every sample, (N,) each, in the units of the loss."""

    terms: dict[str, Tensor]
    by_level: str | None
    """The term that the log shows by noise level too, if one depends on it."""
    quarters: Tensor
    """Which quarter of the levels each sample was at, (N,) int64."""


class Objective(nn.Module, ABC):
    """`forward(draw(batch, step)) -> losses`; the module that is wrapped, compiled, saved and restored as a whole.

    `network` is what is trained, averaged (EMA) and exported. A subclass says what a step draws and what `terms` the
    loss has, how it is built and what it costs; everything else has a default. Its settings are a kind of
    `epg.config.objectives`.
    """

    network: nn.Module

    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        self.seed = config.seed
        self.total_steps = config.training.steps
        self.noise: NoiseConfig = config.noise
        self.shift = config.shift
        self.normalizer = normalizer_for(config)
        self.dtype = torch.float64 if config.training.precision == "fp64" else torch.float32
        self.fused = config.training.compile or config.training.cuda_graphs  # what is drawn is compiled, too

    @classmethod
    @abstractmethod
    def build(cls, config: RunConfig) -> Self:
        """The objective of a resolved configuration, its networks initialised by torch's global generator."""

    @abstractmethod
    def draw(self, batch: Batch, step: int) -> Drawn:
        """What a step sees of a batch, on the batch's device: the one place of an objective where numbers are drawn."""

    def terms(self, drawn: Mapping[str, Tensor]) -> Terms:
        """The loss of every sample, term by term: a pure function, which reads no number on the host.

        Of an objective whose loss has no such terms, `forward` is its own.
        """
        raise NotImplementedError

    def forward(self, drawn: Mapping[str, Tensor]) -> Losses:
        """Batch means of the terms, and their sum as the loss; one of them by noise level."""
        found = self.terms(drawn)
        losses = mean_losses(**found.terms)
        if found.by_level is None:
            return losses
        return losses | by_quarter(found.by_level, found.terms[found.by_level], found.quarters)

    @property
    def encoders(self) -> list[Encoder]:
        """What begins with the weights of stage 1, where a run has them."""
        return []

    @property
    def spectrum(self) -> Spectrum | None:
        """Statistics of the training images that are measured before the first step."""
        return None

    def examples(self, batch: Batch) -> list[Tensor]:
        """Rows of a picture that shows what is learnt from, uint8 (N, C, H, W) each: images, then noise on them."""
        plain = self.normalizer.encode(batch.images)
        noise = self.draws(batch, step=0).normal("noise", plain.shape[1:])
        noisy = [at_levels(plain, self.shift * level, noise) for level in SHOWN_LEVELS]
        return [batch.images, *(self.normalizer.decode(images) for images in noisy)]

    def begin(self, dataset: ImageDataset) -> None:
        """Called once before the first step of a run, on its device and by all processes together: what is measured of
        the images."""

    def ready(self) -> None:
        """Called once before the first step of a process, when that is measured or restored."""

    def after_step(self, step: int) -> None:
        """Called after the optimizer's step of this number, from 0: target networks follow here."""

    def schedule_numbers(self, step: int) -> dict[str, float]:
        """What the stage's schedules say at a step, for the log."""
        return {}

    def diagnostics(self, batch: Batch, step: int) -> Losses:
        """Scalars for the log that cost forward passes, the same on every process; all must call it together."""
        return {}

    def draws(self, batch: Batch, step: int) -> Draws:
        """The random numbers of this batch at this step."""
        return Draws(self.seed, step, batch.first, len(batch), batch.images.device, self.dtype, self.fused)

    def plain_images(self, batch: Batch, draws: Draws, flip: bool) -> Tensor:
        """Network-range images (N, C, H, W), flipped at random."""
        images = self.normalizer.encode(batch.images, self.dtype)
        return random_flip(images, draws.uniform("flip")) if flip else images

    def dropped_labels(self, labels: Tensor, draws: Draws, null_class: int, probability: float) -> Tensor:
        """Labels (N,), each replaced by the null class with this probability."""
        dropped = draws.uniform("label dropout") < probability
        return torch.where(dropped, null_class, labels)


class GeneratorObjective(Objective):
    """An objective that trains an EPG as a denoiser in the parameterisation of its settings.

    Args:
        network: the generator.
        frozen_encoder: the pre-trained encoder in whose features a loss compares images; None where none does.
    """

    network: EPG
    frozen_encoder: Encoder | None

    def __init__(self, network: EPG, config: RunConfig, frozen_encoder: Encoder | None = None) -> None:
        super().__init__(config)
        self.network = network
        self.frozen_encoder = None if frozen_encoder is None else frozen_encoder.requires_grad_(False)
        self.begins_at_random = config.objective.begins == "random"
        if config.optimizer.frozen_encoder:
            network.encoder.requires_grad_(False)
        self.denoiser = denoiser_of(network, config)

    @classmethod
    def build(cls, config: RunConfig) -> Self:
        network = build_epg(config.model, config.data, config.gaussians, config.internal)
        if not config.objective.frozen_encoder:
            return cls(network, config)
        return cls(network, config, build_encoder(config.model, config.data))

    @property
    def encoders(self) -> list[Encoder]:
        own = [] if self.begins_at_random else [self.network.encoder]
        return [*own, *([] if self.frozen_encoder is None else [self.frozen_encoder])]

    def frozen_tokens(self, images: Tensor) -> Tensor:
        """What the frozen encoder makes of images (N, C, H, W) fed at sigma_min: all tokens (N, T, D)."""
        assert self.frozen_encoder is not None
        sigma = images.new_full((len(images),), self.shift * self.noise.sigma_min)
        scale = input_scale(sigma, self.noise.sigma_data).view(-1, 1, 1, 1)
        tokens: Tensor = self.frozen_encoder(scale * images, time_condition(sigma))[0]
        return tokens

    @property
    def spectrum(self) -> Spectrum | None:
        return self.network.spectrum


def denoiser_of(network: EPG, config: RunConfig) -> Denoiser:
    """The denoiser that a network is trained as with this configuration."""
    parameterization = config.objective.predicts
    assert parameterization is not None, f"{config.stage} trains no generator"
    sigma_min = config.shift * config.noise.sigma_min
    return Denoiser(network, parameterization, sigma_min=sigma_min, sigma_data=config.noise.sigma_data)


def at_levels(images: Tensor, sigma: Tensor | float, noise: Tensor) -> Tensor:
    """x_t = x + t eps with shifted levels (N,), or one for all."""
    return images + (sigma.view(-1, 1, 1, 1) if isinstance(sigma, Tensor) else sigma) * noise


def normalizer_for(config: RunConfig) -> Normalizer:
    """The map between uint8 and the network's range that a configuration names."""
    symmetric = config.data.normalization == "symmetric"
    return Normalizer.symmetric(config.data.channels) if symmetric else Normalizer.imagenet()


def mean_losses(**terms: Tensor) -> Losses:
    """Batch means of per-sample terms, and their sum as the loss."""
    means = {name: values.mean() for name, values in terms.items()}
    return {"loss": torch.stack(list(means.values())).sum(), **{k: v.detach() for k, v in means.items()}}


def keep_masks(draws: Draws, count: int, shape: Sequence[int], dropout: float) -> Tensor:
    """Dropout as numbers to multiply with: masks (count, N, *shape) of 0 or 1 / (1 - dropout)."""
    keep = 1 - dropout
    return torch.stack([draws.uniform(f"dropout {i}", shape) < keep for i in range(count)]).float().div_(keep)
