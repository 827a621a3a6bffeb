"""The levels at which an image is drawn, and how many evaluations that takes (NFE)."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from epg import samplers, schedule
from epg.guidance import acts

if TYPE_CHECKING:
    from epg.config.sections import NoiseConfig, SamplingConfig


def grid_of(sampling: "SamplingConfig", noise: "NoiseConfig", shift: float) -> Tensor:
    """The shifted grid of sampling settings, float64, ending in 0."""
    if sampling.levels is not None:
        return torch.tensor([*(shift * level for level in sampling.levels), 0.0], dtype=torch.float64)
    sampler = samplers.SAMPLERS[sampling.sampler]
    grid = schedule.multistep_grid if sampler.jumps else schedule.sampling_grid
    options = {"sigma_min": noise.sigma_min, "sigma_max": noise.sigma_max, "rho": noise.rho}
    return grid(sampler.steps or sampling.steps, shift=shift, **options)


def evaluations(sampling: "SamplingConfig", noise: "NoiseConfig", shift: float) -> tuple[int, int]:
    """How often sampling evaluates a denoiser, found by running it on nothing, and how often guidance acts then."""
    levels: list[float] = []

    def denoise(x: Tensor, sigma: float) -> Tensor:
        levels.append(sigma)
        return x

    nothing = torch.zeros(1)
    sampler = samplers.SAMPLERS[sampling.sampler]
    sampler(denoise, nothing, grid_of(sampling, noise, shift), lambda step: nothing, shift)
    interval = (shift * sampling.interval[0], shift * sampling.interval[1])
    return len(levels), sum(acts(sampling.guidance, interval, level) for level in levels)
