"""What the training loop knows of a stage: a module that turns a batch and a step into losses."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from epg.config.settings import NoiseConfig, RunConfig
from epg.data.augment import random_flip
from epg.data.loader import Batch
from epg.data.normalize import Normalizer
from epg.randomness import Draws

Losses = dict[str, Tensor]
"""Scalars: `loss` is what is minimised, the rest are its terms, and terms by noise level (`by_quarter`)."""


class Objective(nn.Module):
    """`forward(batch, step) -> losses`; the module that is wrapped, compiled, saved and restored as a whole.

    `network` is what is trained, averaged (EMA) and exported.
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

    def forward(self, batch: Batch, step: int) -> Losses:
        raise NotImplementedError

    def after_step(self) -> None:
        """Called after every optimizer step: target networks follow here."""

    def schedule_numbers(self, step: int) -> dict[str, float]:
        """What the stage's schedules say at a step, for the log."""
        return {}

    def diagnostics(self, batch: Batch, step: int) -> Losses:
        """Scalars for the log that cost forward passes, the same on every process; all must call it together."""
        return {}

    def draws(self, batch: Batch, step: int) -> Draws:
        """The random numbers of this batch at this step."""
        return Draws(self.seed, step, batch.first, len(batch), batch.images.device, self.dtype)

    def plain_images(self, batch: Batch, draws: Draws, flip: bool) -> Tensor:
        """Network-range images (N, C, H, W), flipped at random."""
        images = self.normalizer.encode(batch.images, self.dtype)
        return random_flip(images, draws.uniform("flip")) if flip else images

    def dropped_labels(self, labels: Tensor, draws: Draws, null_class: int, probability: float) -> Tensor:
        """Labels (N,), each replaced by the null class with this probability."""
        dropped = draws.uniform("label dropout") < probability
        return torch.where(dropped, null_class, labels)


def at_levels(images: Tensor, sigma: Tensor | float, noise: Tensor) -> Tensor:
    """x_t = x + t eps with shifted levels (N,) or one number."""
    return images + (sigma.view(-1, 1, 1, 1) if isinstance(sigma, Tensor) else sigma) * noise


def normalizer_for(config: RunConfig) -> Normalizer:
    """The map between uint8 and the network's range that a configuration names."""
    symmetric = config.data.normalization == "symmetric"
    return Normalizer.symmetric(config.data.channels) if symmetric else Normalizer.imagenet()


def mean_losses(**terms: Tensor) -> Losses:
    """Batch means of per-sample terms, and their sum as the loss."""
    means = {name: values.mean() for name, values in terms.items()}
    return {"loss": torch.stack(list(means.values())).sum(), **{k: v.detach() for k, v in means.items()}}


def keep_masks(draws: Draws, count: int, shape: Sequence[int], dropout: float) -> list[Tensor]:
    """Dropout as numbers to multiply with: `count` masks (N, *shape) of 0 or 1 / (1 - dropout)."""
    keep = 1 - dropout
    return [(draws.uniform(f"dropout {i}", shape) < keep).float() / keep for i in range(count)]
