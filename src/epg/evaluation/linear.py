"""A denoiser against the best linear one: does it know more than mean and spectrum of its images?

The linear denoiser is that of one Gaussian over all training images whose spatial frequencies are independent
(`epg.networks.Spectrum`). Below 1 at every noise level is the first thing that a run has to reach; the ratio says
early, and for little, whether it learns. It does not judge pictures.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from epg.config.settings import RunConfig
from epg.data.loading.base import ImageDataset
from epg.data.views.normalize import Normalizer
from epg.denoiser import Denoiser
from epg.errors import UserError
from epg.evaluation.extractors.indomain import images_and_labels
from epg.evaluation.noisy_features import noise_of
from epg.networks import Spectrum
from epg.objectives.base import at_levels
from epg.training.spectra import measured

LEVELS = (0.1, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0)  # unshifted
COUNT = 512  # held-out images
BLOCK = 128  # images that the network sees at once
PREFIX = "linear/"
MEAN = PREFIX + "mean"


@dataclass(frozen=True)
class LinearJudge:
    """Held-out images, and how well the best linear denoiser does on them.

    Args:
        images: uint8 (N, C, H, W). labels: (N,).
        spectrum: one Gaussian, of the training images.
    """

    images: Tensor
    labels: Tensor
    spectrum: Spectrum
    normalizer: Normalizer
    shift: float

    def __call__(self, denoiser: Denoiser) -> dict[str, float]:
        """Error of the denoiser / error of the linear one, by unshifted level (`linear/0.1` ...), and their geometric
        mean (`linear/mean`). Noise and images are always the same."""
        ours, linear = self.errors(denoiser)
        ratios = {f"{PREFIX}{level:g}": float(a / b) for level, a, b in zip(LEVELS, ours, linear, strict=True)}
        return ratios | {MEAN: math.exp(sum(map(math.log, ratios.values())) / len(ratios))}

    @torch.no_grad()
    def errors(self, denoiser: Denoiser) -> tuple[Tensor, Tensor]:
        """Mean squared errors of the denoiser and of the linear one at LEVELS, float64."""
        device = next(denoiser.parameters()).device
        conditional = denoiser.network.num_classes > 0
        sums = torch.zeros(2, len(LEVELS), dtype=torch.float64, device=device)
        for start in range(0, len(self.images), BLOCK):
            part = range(start, min(start + BLOCK, len(self.images)))
            images = self.normalizer.encode(self.images[part.start : part.stop].to(device))
            labels = self.labels[part.start : part.stop].to(device) if conditional else None
            noise = noise_of(part, (images.shape[1], *images.shape[2:4]), "linear", 0).to(device)
            for i, level in enumerate(LEVELS):
                t = images.new_full((len(images),), self.shift * level)
                noisy = at_levels(images, t, noise)
                for j, denoised in enumerate((denoiser(noisy, t, labels), self.spectrum(noisy, t))):
                    sums[j, i] += (denoised - images).double().square().mean((1, 2, 3)).sum()
        ours, linear = (sums / len(self.images)).cpu()
        return ours, linear


def linear_judge(
    train: ImageDataset,
    held_out: ImageDataset,
    config: RunConfig,
    normalizer: Normalizer,
    spectrum: Spectrum | None = None,
) -> LinearJudge:
    """The judge of models of a configuration; `spectrum` is that of the training images where it is known already.

    Raises UserError where the held-out images have no labels and the model needs them.
    """
    if config.model.num_classes and held_out.num_classes == 0:
        raise UserError("the model is class-conditional, but the held-out images have no labels")
    if spectrum is None:
        spectrum = Spectrum(1, train.channels, train.image_size)
        for name, value in measured(train, config, normalizer, spectrum.mean.shape).items():
            getattr(spectrum, name).copy_(value)
    chosen = np.unique(np.linspace(0, len(held_out) - 1, min(COUNT, len(held_out))).round().astype(np.int64))
    images, labels = images_and_labels(held_out, chosen)
    return LinearJudge(images, labels, spectrum, normalizer, config.shift)
