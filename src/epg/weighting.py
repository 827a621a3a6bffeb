"""Which noise levels a diffusion model sees, and how much each counts, lambda(s): functions of shifted levels s.

Weights are of |D - x|^2. Their scales differ by orders of magnitude, and gradients are clipped at a fixed norm: each is
multiplied by what gives it the paper's mean. None is divided by the density.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from epg import schedule
from epg.config.diffusion import DiffusionConfig
from epg.config.diffusion import Weighting as Name
from epg.config.sections import NoiseConfig

LATEST = 0.05  # the smallest time that JiT divides by
GAMMA = 5.0  # the largest signal-to-noise ratio that min-SNR counts
PAPER = DiffusionConfig()
REACH, POINTS = 8.0, 4001  # of the standard normal numbers that a mean is taken over


def v(s: Tensor, scale: float = 1.0) -> Tensor:
    """Of the velocity a eps - x of flow matching: `1 / t^2 = ((s + a) / s)^2`, with t at least 0.05 (JiT)."""
    return schedule.flow_time(s, scale).clamp(min=LATEST) ** -2


def edm(s: Tensor, sigma_data: float) -> Tensor:
    """EDM's `1 / c_out^2 = (s^2 + sd^2) / (s sd)^2`."""
    return (s**2 + sigma_data**2) / (s * sigma_data) ** 2


def min_snr(s: Tensor, sigma_data: float) -> Tensor:
    """min(SNR, 5) with `SNR = sd^2 / s^2` (Hang et al., 2023)."""
    return (sigma_data / s).square().clamp(max=GAMMA)


def sigmoid(s: Tensor, sigma_data: float, bias: float) -> Tensor:
    """sigmoid(ln SNR - bias) with `SNR = sd^2 / s^2` (the form of simpler diffusion, Hoogeboom et al., 2024)."""
    return (2 * (math.log(sigma_data) - s.log()) - bias).sigmoid()


class Weighting:
    """lambda of *unshifted* levels with the settings of a stage: `weighting(t)`, (N,) -> (N,).

    The paper's is `1 / (t_n - t_{n+1})`. Another one has the mean over its density that the paper's has over the
    paper's density: 890, with the paper's range of levels.
    """

    def __init__(self, name: Name, config: DiffusionConfig, noise: NoiseConfig, shift: float) -> None:
        self.levels, self.ends = config.levels, (noise.sigma_min, noise.sigma_max, noise.rho)
        self.factor = 1.0
        shapes: dict[Name, Callable[[Tensor], Tensor]] = {
            "paper": self.paper,
            "v": lambda t: v(shift * t, noise.scale),
            "edm": lambda t: edm(shift * t, noise.sigma_data),
            "min_snr": lambda t: min_snr(shift * t, noise.sigma_data),
            "sigmoid": lambda t: sigmoid(shift * t, noise.sigma_data, config.sigmoid_bias),
        }
        self.shape = shapes[name]
        if name != "paper":
            paper = Weighting("paper", PAPER, noise, shift)
            self.factor = mean(paper, PAPER, noise, shift) / mean(self, config, noise, shift)

    def __call__(self, t: Tensor) -> Tensor:
        return self.factor * self.shape(t)

    def paper(self, t: Tensor) -> Tensor:
        return schedule.denoising_weight(t, self.levels, *self.ends)


def mean(weighting: Weighting, config: DiffusionConfig, noise: NoiseConfig, shift: float) -> float:
    """Of a weight over a density of levels, without their rounding."""
    unit = torch.linspace(-REACH, REACH, POINTS, dtype=torch.float64)
    chance = (-(unit**2) / 2).exp()
    weights = weighting(drawn_levels(unit, config, noise, shift))
    return float((chance * weights).sum() / chance.sum())


def drawn_levels(unit: Tensor, config: DiffusionConfig, noise: NoiseConfig, shift: float) -> Tensor:
    """Unshifted levels (N,) of the density, rising with the standard normal numbers (N,) that they are made of."""
    if config.density == "lognormal":
        t = schedule.lognormal(unit, config.mean, config.std)
    else:
        t = schedule.uniform_time(unit, noise.scale) / shift
    return t.clamp(noise.sigma_min, noise.sigma_max)
