"""The levels at which an image is drawn, and how many evaluations that takes (NFE)."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any

from epg import samplers, schedule

if TYPE_CHECKING:  # NFE are counted where torch would take too long to import
    from torch import Tensor

    from epg.config.sections import NoiseConfig, SamplingConfig


def grid_of(sampling: SamplingConfig, noise: NoiseConfig, shift: float) -> Tensor:
    """The shifted grid of sampling settings, float64, ending in 0."""
    import torch

    if sampling.levels is not None or sampling.grid != "karras":
        return torch.tensor(levels_of(sampling, noise, shift), dtype=torch.float64)
    sampler = samplers.SAMPLERS[sampling.sampler]
    grid = schedule.multistep_grid if sampler.jumps else schedule.sampling_grid
    options = {"sigma_min": noise.sigma_min, "sigma_max": noise.sigma_max, "rho": noise.rho}
    return grid(sampler.steps or sampling.steps, shift=shift, **options)


def levels_of(sampling: SamplingConfig, noise: NoiseConfig, shift: float) -> list[float]:
    """`grid_of` in plain numbers, the same to rounding."""
    sampler = samplers.SAMPLERS[sampling.sampler]
    steps = sampler.steps or sampling.steps
    if sampling.levels is not None:
        levels = list(sampling.levels)
    elif sampling.grid == "karras":
        ends = (noise.sigma_min, noise.sigma_max, noise.rho)
        levels = [schedule.karras(n, steps + sampler.jumps, *ends) for n in range(steps)]
    else:
        levels = [schedule.flow(n, steps, noise.sigma_max, shift, noise.scale) for n in range(steps)]
    return [*(shift * level for level in levels), 0.0]


def evaluations(sampling: SamplingConfig, noise: NoiseConfig, shift: float) -> tuple[int, int]:
    """How often sampling evaluates a denoiser, found by running it on nothing, and how often another guides it then."""
    seen: list[float] = []

    def denoise(x: Any, sigma: float) -> Any:
        seen.append(sigma)
        return x

    sampler: Any = samplers.SAMPLERS[sampling.sampler]  # numbers take the place of its tensors
    sampler(denoise, 0.0, array("d", levels_of(sampling, noise, shift)), lambda step: 0.0, shift)
    interval = (shift * sampling.interval[0], shift * sampling.interval[1])
    if sampling.guide == "internal":  # both predictions are of one evaluation
        return len(seen), 0
    return len(seen), sum(samplers.acts(sampling.guidance, interval, level) for level in seen)
