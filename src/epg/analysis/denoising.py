"""Denoising error of a generator by noise level, on training and on held-out images (`epg denoising`).

Training images that are denoised better than equally real ones the generator has never seen are remembered; at which
noise levels they are says what is remembered. Noise belongs to each image and is the same at every level, so two
models, or two checkpoints, are compared on the very same noisy images.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from epg import schedule
from epg.errors import UserError
from epg.evaluation.noisy_features import noise_of
from epg.evaluation.sources import ImageSource
from epg.generator import Generator
from epg.objectives.base import at_levels

BLOCK = 64  # images that the network sees at once
LEVELS = 16

Errors = NDArray[np.float64]


@dataclass(frozen=True)
class Level:
    """At one unshifted noise level: mean squared error of the denoised images, per pixel, in the network's range (in
    which the data has a standard deviation of about 0.5)."""

    level: float
    train: float
    train_error: float
    """Standard error of `train` from the finite number of images."""
    held_out: float
    held_out_error: float

    @property
    def gap(self) -> float:
        """By which part the error on training images is smaller: 0 without memorisation, 1 where they are known."""
        return 1 - self.train / self.held_out

    @property
    def z(self) -> float:
        """The difference in standard errors."""
        return (self.held_out - self.train) / float(np.hypot(self.train_error, self.held_out_error))


def levels_between(model: Generator, count: int = LEVELS) -> list[float]:
    """Unshifted levels of the Karras grid from sigma_min to sigma_max, lowest first."""
    if count < 2:
        raise UserError(f"--levels {count}: must be at least 2")
    noise = model.noise
    return schedule.karras_grid(count, noise.sigma_min, noise.sigma_max, noise.rho).flip(0).tolist()


@torch.no_grad()
def squared_errors(
    model: Generator,
    source: ImageSource,
    levels: Sequence[float],
    purpose: str,
    seed: int = 0,
    on_block: Callable[[int], None] | None = None,
) -> Errors:
    """Mean squared error per pixel of every image at every unshifted level, (N, levels), float64.

    Labels are given where the model takes them. The noise of image i depends on (seed, purpose, i) alone.
    """
    labels = source.labels if model.num_classes else None
    if model.num_classes and labels is None:
        raise UserError("the model is class-conditional, but these images have no labels")
    errors = np.empty((source.count, len(levels)))
    for start in range(0, source.count, BLOCK):
        part = range(start, min(start + BLOCK, source.count))
        images = model.normalizer.encode(source.read(part.start, part.stop).to(model.device))
        noise = noise_of(part, model.image_shape, f"denoising {purpose}", seed).to(model.device)
        of_part = None if labels is None else labels[part.start : part.stop].to(model.device)
        for column, level in enumerate(levels):
            t = model.shift * level
            denoised = model.denoiser(at_levels(images, t, noise), t, of_part)
            errors[part.start : part.stop, column] = (denoised - images).double().square().mean((1, 2, 3)).cpu()
        if on_block:
            on_block(part.stop)
    return errors


def compare(levels: Sequence[float], train: Errors, held_out: Errors) -> list[Level]:
    """Means and their errors from the errors (N, levels) of training images and (M, levels) of held-out ones."""

    def mean(errors: Errors) -> tuple[Errors, Errors]:
        return errors.mean(0), errors.std(0, ddof=1) / len(errors) ** 0.5

    columns = zip(levels, *mean(train), *mean(held_out), strict=True)
    return [Level(*map(float, column)) for column in columns]
