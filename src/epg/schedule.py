"""Noise levels and everything that follows a schedule: pure functions.

Levels are EDM's variance-exploding sigma. Two scales occur: *unshifted* levels, in which the paper states its grids,
densities and weights, and *shifted* levels, which touch images: `shifted = shift * unshifted` with
`shift = image_size / 64` (simple diffusion) unless a recipe says otherwise. Functions here are unshifted unless they
take a `shift`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:  # a grid in plain numbers is computed where torch would take too long to import
    from torch import Tensor

Index = TypeVar("Index", float, "Tensor")

SIGMA_MIN = 0.002
SIGMA_MAX = 80.0
SIGMA_DATA = 0.5
RHO = 7.0


def karras(n: Index, num_levels: int, sigma_min: float, sigma_max: float, rho: float) -> Index:
    """Level `n` (0 = noisiest) of the Karras grid with `num_levels` levels, eq. 10.

    `n` may be any number, or float64 numbers: beyond `num_levels - 1` the formula is continued, down to 0.
    """
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    root = high + n / (num_levels - 1) * (low - high)
    return max(root, 0.0) ** rho if isinstance(root, float) else root**rho


def karras_grid(
    num_levels: int, sigma_min: float = SIGMA_MIN, sigma_max: float = SIGMA_MAX, rho: float = RHO
) -> Tensor:
    """All `num_levels` levels of eq. 10, noisiest first, float64 (num_levels,)."""
    import torch

    return karras(torch.arange(num_levels, dtype=torch.float64), num_levels, sigma_min, sigma_max, rho)


def sampling_grid(
    steps: int,
    *,
    shift: float = 1.0,
    to_zero: bool = True,
    sigma_min: float = SIGMA_MIN,
    sigma_max: float = SIGMA_MAX,
    rho: float = RHO,
) -> Tensor:
    """Shifted levels a sampler walks down: `steps` Karras levels and, with `to_zero`, a final 0. Float64."""
    sigmas = shift * karras_grid(steps, sigma_min, sigma_max, rho)
    return sigmas.new_tensor([*sigmas.tolist(), 0.0]) if to_zero else sigmas


def multistep_grid(
    steps: int, *, shift: float = 1.0, sigma_min: float = SIGMA_MIN, sigma_max: float = SIGMA_MAX, rho: float = RHO
) -> Tensor:
    """Shifted levels of `steps` evaluations of a consistency model, and a final 0. Float64.

    The first `steps` levels of the Karras grid of `steps + 1`: at its last one, sigma_min, the model is the identity,
    and an evaluation would be wasted. Two steps are 80 and 2.52.
    """
    sigmas = shift * karras_grid(steps + 1, sigma_min, sigma_max, rho)[:-1]
    return sigmas.new_tensor([*sigmas.tolist(), 0.0])


def time_condition(sigma: Tensor) -> Tensor:
    """c(t) = 1000 ln(t) / 4, from shifted levels."""
    return 1000 * sigma.log() / 4


def input_scale(sigma: Tensor, sigma_data: float = SIGMA_DATA) -> Tensor:
    """c_in = 1 / sqrt(t^2 + sigma_data^2), from shifted levels."""
    return (sigma**2 + sigma_data**2).rsqrt()


# Pre-training -------------------------------------------------------------------------------------------------------


def num_levels(step: int, total_steps: int, s0: int = 20, s1: int = 1280) -> int:
    """N(k) of improved consistency training: doubles from `s0` to `s1` over `total_steps`, plus one.

    `min(s0 2^floor(k / K'), s1) + 1` with `K' = floor(K / (log2 floor(s1 / s0) + 1))`.
    """
    period = math.floor(total_steps / (math.log2(s1 // s0) + 1))
    doublings = step // period if period else 64
    return min(s0 * 2 ** min(doublings, 64), s1) + 1


def tau2(step: int, total_steps: int, tau1: float = 0.1, start: float = 0.2) -> float:
    """tau2(k), the temperature at sigma_max: falls along a sine from `start` to `tau1` at two thirds of training."""
    return start + (tau1 - start) * math.sin(math.pi / 2 * min(1.0, 1.5 * step / total_steps))


def momentum(step: int, total_steps: int, start: float, end: float, steepness: float = 10.0) -> float:
    """EMA decay of the momentum encoder, annealed as in rRCM (Lei et al., 2025).

    `start + (end - start) tanh(A u / 2)` with `u = (m - start) / (end - start)` and m^2 linear in the step from start^2
    to end^2: most of the way is gone in the first half.
    """
    if start == end:
        return start
    m = math.sqrt(start**2 + min(1.0, step / total_steps) * (end**2 - start**2))
    return start + (end - start) * math.tanh(steepness / 2 * (m - start) / (end - start))


def temperature(
    sigma: Tensor, tau2: float, tau1: float = 0.1, sigma_min: float = SIGMA_MIN, sigma_max: float = SIGMA_MAX
) -> Tensor:
    """tau(t): linear in the unshifted level, `tau1` at sigma_min and `tau2` at sigma_max."""
    return tau1 + (tau2 - tau1) * (sigma - sigma_min) / (sigma_max - sigma_min)


# Diffusion ----------------------------------------------------------------------------------------------------------


def lognormal(unit_normal: Tensor, mean: float, std: float) -> Tensor:
    """ln t ~ N(mean, std^2), from standard normal numbers."""
    return (mean + std * unit_normal).exp()


def nearest_level(sigma: Tensor, grid: Tensor) -> Tensor:
    """Index of the grid level nearest to each sigma (nearest in sigma, not in ln sigma). `grid` falls. int64."""
    import torch

    ascending = grid.flip(0).to(sigma)
    midpoints = (ascending[1:] + ascending[:-1]) / 2
    return len(grid) - 1 - torch.searchsorted(midpoints, sigma)


def denoising_weight(t: Tensor, num_levels: int, sigma_min: float, sigma_max: float, rho: float) -> Tensor:
    """lambda = 1 / (t_n - t_{n+1}) at levels t; of one between two of the grid n is the real-valued inverse of eq. 10.

    With `root = t^(1/rho)`, which falls by h from n to n + 1: `t_n - t_{n+1} = t (1 - (1 - h / root)^rho)`.
    """
    h = (sigma_max ** (1 / rho) - sigma_min ** (1 / rho)) / (num_levels - 1)
    left = (1 - h / t ** (1 / rho)).clamp(min=0)
    return 1 / (t * (1 - left**rho))


# Flow matching ------------------------------------------------------------------------------------------------------
#
# The straight path z = (1 - t) x + t a eps is (1 - t) times x + s eps with the *shifted* level s = a t / (1 - t).


def flow_time(s: Index, scale: float = 1.0) -> Index:
    """t = s / (s + a)."""
    return s / (s + scale)


def flow_level(t: Index, scale: float = 1.0) -> Index:
    """s = a t / (1 - t)."""
    return scale * t / (1 - t)


def uniform_time(unit_normal: Tensor, scale: float = 1.0) -> Tensor:
    """Shifted levels of times uniform in (0, 1), rising with standard normal numbers."""
    from torch.special import ndtr

    return scale * ndtr(unit_normal) / ndtr(-unit_normal)


def flow(n: Index, num_levels: int, sigma_max: float, shift: float, scale: float) -> Index:
    """Unshifted level `n` (0 = noisiest) of `num_levels`, whose times with a final 0 are evenly apart.

    They start at `s_max / (s_max + a)`, as t = 1 were an infinite level.
    """
    return flow_level(flow_time(shift * sigma_max, scale) * (1 - n / num_levels), scale) / shift


# Consistency --------------------------------------------------------------------------------------------------------


def consistency_stage(step: int, delta: int = 1, d: int = 100_000, last: int | None = None) -> int:
    """Stage of easy consistency tuning: `delta + step // d`, at most `last`."""
    stage = delta + step // d
    return stage if last is None else min(stage, last)


def last_stage(precision: float, q: float = 2.0) -> int:
    """The stage after which `(t - r) / t`, about q^-stage, falls below the relative `precision` of the arithmetic.

    Beyond it a network would be asked for differences between inputs that it cannot tell apart.
    """
    return math.floor(math.log(1 / precision) / math.log(q) + 1e-9)


def consistency_gap(
    t: Tensor, stage: Tensor | int, q: float = 2.0, k: float = 8.0, b: float = 1.0, sigma_min: float = SIGMA_MIN
) -> Tensor:
    """t - r(t) without the cancellation of a difference: `min(t (1 + k sigmoid(-b t)) / q^stage, t - sigma_min)`."""
    return (t * (1 + k * (-b * t).sigmoid()) * q**-stage).minimum(t - sigma_min)


def consistency_target_level(
    t: Tensor, stage: Tensor | int, q: float = 2.0, k: float = 8.0, b: float = 1.0, sigma_min: float = SIGMA_MIN
) -> Tensor:
    """r(t) = max(t * (1 - (1 + k sigmoid(-b t)) / q^stage), sigma_min): the level of the target (ECT)."""
    return (t * (1 - (1 + k * (-b * t).sigmoid()) * q**-stage)).clamp(min=sigma_min)
