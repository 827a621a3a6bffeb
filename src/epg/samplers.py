"""Samplers: plain functions over a falling grid of (shifted) levels.

Each takes `denoise(x, sigma) -> denoised`, unit noise already scaled to the first level, and the grid as a 1-d float64
tensor; a grid that ends in 0 ends on a denoised image. `noise(i)` gives the standard normal numbers of step i, shaped
like x, so that the caller decides how they are keyed. `watch(i, x, denoised)` is called after every step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the table of samplers is read where torch would take too long to import
    from torch import Tensor

Denoise = Callable[["Tensor", float], "Tensor"]
"""What a sampler needs: x (N, C, H, W) at one level -> denoised (N, C, H, W). Labels and guidance are already in it."""
Noise = Callable[[int], "Tensor"]
Watch = Callable[[int, "Tensor", "Tensor"], None]


def euler(denoise: Denoise, x: Tensor, sigmas: Tensor, watch: Watch | None = None) -> Tensor:
    """First order steps of the PF-ODE dx/dt = (x - D) / t: one evaluation a step."""
    levels = sigmas.tolist()
    for i, (t, s) in enumerate(pairwise(levels)):
        denoised = denoise(x, t)
        x = x + (s - t) * (x - denoised) / t
        if watch:
            watch(i, x, denoised)
    return x


def heun(denoise: Denoise, x: Tensor, sigmas: Tensor, watch: Watch | None = None) -> Tensor:
    """Second order steps (EDM, algorithm 1): two evaluations a step, one for the step to 0."""
    levels = sigmas.tolist()
    for i, (t, s) in enumerate(pairwise(levels)):
        denoised = denoise(x, t)
        x = _heun_step(denoise, x, denoised, t, s)
        if watch:
            watch(i, x, denoised)
    return x


def _heun_step(denoise: Denoise, x: Tensor, denoised: Tensor, t: float, s: float) -> Tensor:
    d = (x - denoised) / t
    x_euler = x + (s - t) * d
    if s == 0:
        return x_euler
    return x + (s - t) * (d + (x_euler - denoise(x_euler, s)) / s) / 2


def edm_stochastic(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: Noise,
    *,
    s_churn: float = 40.0,
    s_min: float = 0.05,
    s_max: float = 50.0,
    s_noise: float = 1.003,
    watch: Watch | None = None,
) -> Tensor:
    """EDM's stochastic sampler (algorithm 2): noise is added before each Heun step inside [s_min, s_max].

    The defaults are EDM's for ImageNet at 64 pixels; scale s_min and s_max with the shift.
    """
    levels = sigmas.tolist()
    gamma_max = min(s_churn / (len(levels) - 1), math.sqrt(2) - 1)
    for i, (t, s) in enumerate(pairwise(levels)):
        t_hat = t * (1 + gamma_max) if s_min <= t <= s_max else t
        if t_hat > t:
            x = x + math.sqrt(t_hat**2 - t**2) * s_noise * noise(i)
        denoised = denoise(x, t_hat)
        x = _heun_step(denoise, x, denoised, t_hat, s)
        if watch:
            watch(i, x, denoised)
    return x


def euler_ancestral(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, *, eta: float = 1.0, watch: Watch | None = None
) -> Tensor:
    """Euler down to sigma_down, then fresh noise up to the next level; `eta = 0` is `euler`."""
    levels = sigmas.tolist()
    for i, (t, s) in enumerate(pairwise(levels)):
        denoised = denoise(x, t)
        up = min(s, eta * math.sqrt(s**2 * (t**2 - s**2) / t**2))
        down = math.sqrt(s**2 - up**2)
        x = x + (down - t) * (x - denoised) / t
        if up:
            x = x + up * noise(i)
        if watch:
            watch(i, x, denoised)
    return x


def one_step(denoise: Denoise, x: Tensor, sigmas: Tensor, watch: Watch | None = None) -> Tensor:
    """A consistency model's single evaluation at the first level."""
    denoised = denoise(x, float(sigmas[0]))
    if watch:
        watch(0, denoised, denoised)
    return denoised


def multistep(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, watch: Watch | None = None) -> Tensor:
    """Multi-step consistency sampling: denoise, then noise again to each further level (a final 0 adds nothing)."""
    levels = [s for s in sigmas.tolist() if s > 0]
    for i, t in enumerate(levels):
        if i:
            x = x + t * noise(i)
        x = denoise(x, t)
        if watch:
            watch(i, x, x)
    return x


# The table ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sampler:
    """A way to draw: all that settings, their checks and `epg.generator` know of it."""

    function: Callable[..., Tensor]
    jumps: bool = False
    """Whether it is for models that jump to the end of the walk; its grid then leaves out the last level, where a
    consistency model is the identity."""
    noise: bool = False
    """Whether it takes fresh noise at every step."""
    levels: Mapping[str, float] = field(default_factory=dict)
    """Unshifted noise levels among its arguments."""
    steps: int | None = None
    """The only number of steps that it takes."""

    def __call__(
        self, denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, shift: float, watch: Watch | None = None
    ) -> Tensor:
        """The function with what it takes of these, see the top of this file."""
        options: dict[str, Any] = {name: shift * level for name, level in self.levels.items()}
        if self.noise:
            options["noise"] = noise
        return self.function(denoise, x, sigmas, watch=watch, **options)


SAMPLERS = {
    "heun": Sampler(heun),
    "euler": Sampler(euler),
    "edm_stochastic": Sampler(edm_stochastic, noise=True, levels={"s_min": 0.05, "s_max": 50.0}),
    "euler_ancestral": Sampler(euler_ancestral, noise=True),
    "one_step": Sampler(one_step, jumps=True, steps=1),
    "multistep": Sampler(multistep, jumps=True, noise=True),
}


def acts(scale: float, interval: tuple[float, float], sigma: float) -> bool:
    """Whether guidance of this scale changes anything at a level: inside (low, high]."""
    return scale != 1 and interval[0] < sigma <= interval[1]
