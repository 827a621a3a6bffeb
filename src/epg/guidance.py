"""Guidance wraps a denoiser: the result is what a sampler calls, and the sampler knows nothing of it."""

import math

import torch
from torch import Tensor

from epg.denoiser import Denoiser
from epg.labels import no_class
from epg.samplers import Denoise, acts

EVERYWHERE = (0.0, math.inf)


class IntervalGuidance:
    """Classifier-free guidance `u + w (c - u)` where `low < sigma <= high`, the conditional prediction elsewhere.

    Conditional and unconditional predictions share one call of twice the batch, and only inside the interval.

    Args:
        denoiser: D(x, sigma, labels) of a class-conditional network.
        labels: (N,) int64, or of mixtures weights (N, classes + 1).
        scale: w; 1 is no guidance.
        interval: (low, high] in the levels that the sampler uses (shifted).
    """

    def __init__(
        self, denoiser: Denoiser, labels: Tensor, scale: float, interval: tuple[float, float] = EVERYWHERE
    ) -> None:
        self.denoiser, self.labels, self.scale, self.interval = denoiser, labels, scale, interval
        self.labels_and_null = torch.cat([labels, no_class(labels, denoiser.network.null_class)])

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        if not acts(self.scale, self.interval, sigma):
            return self.denoiser(x, sigma, self.labels)
        c, u = self.denoiser(torch.cat([x, x]), sigma, self.labels_and_null).chunk(2)
        return u + self.scale * (c - u)


class Autoguidance:
    """Guidance by a weaker model of the same task, `g + w (d - g)` inside the interval (Karras et al. 2024)."""

    def __init__(
        self, denoise: Denoise, guide: Denoise, scale: float, interval: tuple[float, float] = EVERYWHERE
    ) -> None:
        self.denoise, self.guide, self.scale, self.interval = denoise, guide, scale, interval

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        d = self.denoise(x, sigma)
        if not acts(self.scale, self.interval, sigma):
            return d
        d = d.clone()  # where networks are replayed as CUDA graphs the guide's would overwrite it
        g = self.guide(x, sigma)
        return g + self.scale * (d - g)


class InternalGuidance:
    """Guidance by the head on the model's own encoder, `e + w (d - e)` inside the interval (arXiv 2512.24176): both
    are of one evaluation."""

    def __init__(
        self, denoiser: Denoiser, labels: Tensor | None, scale: float, interval: tuple[float, float] = EVERYWHERE
    ) -> None:
        self.denoiser, self.labels, self.scale, self.interval = denoiser, labels, scale, interval

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        if not acts(self.scale, self.interval, sigma):
            return self.denoiser(x, sigma, self.labels)
        d, e = self.denoiser(x, sigma, self.labels, internal=True).unbind()
        return e + self.scale * (d - e)
