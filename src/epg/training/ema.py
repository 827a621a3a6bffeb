"""Exponential moving averages of a network's weights, several at once, of fixed decay or of the power-function kind."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from epg.networks.layers import full_precision
from epg.sharding import local, shard_like, whole_on_first


class EMA:
    """Shadows of a network's parameters in at least float32, sharded as the parameters are.

    After step t, `e <- beta e + (1 - beta) w`, with beta a fixed decay (set `ema-<decay>`), or the power function's
    `(1 - 1/t)^(gamma + 1)` whose width relative to training is `sigma_rel` (set `power-<sigma_rel>`, EDM2). Where
    training has `total_steps` that are few for a decay, that one is warmed up (`warmed_decay`).
    """

    def __init__(
        self,
        network: nn.Module,
        decays: list[float],
        sigma_rels: list[float] | None = None,
        total_steps: int | None = None,
    ) -> None:
        self.network, self.total_steps = network, total_steps
        self.parameters = list(network.parameters())
        self.decays: dict[str, float] = {f"ema-{decay}": decay for decay in decays}
        self.gammas: dict[str, float] = {f"power-{width}": gamma_of(width) for width in sigma_rels or []}
        self.shadows = {
            name: {key: full_precision(p.detach().clone()) for key, p in network.named_parameters()}
            for name in (*self.decays, *self.gammas)
        }

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Follows the weights after `step` completed steps (1 after the first)."""
        parameters = [full_precision(local(p)) for p in self.parameters]
        for name, shadow in self.shadows.items():
            beta = self._decay(name, step)
            torch._foreach_lerp_([local(s) for s in shadow.values()], parameters, 1 - beta)

    def _decay(self, name: str, step: int) -> float:
        if name in self.gammas:
            return power_decay(step, self.gammas[name])
        decay = self.decays[name]
        return warmed_decay(step, decay) if is_short(self.total_steps, decay) else decay

    def state_dict(self, name: str) -> dict[str, Tensor]:
        """A complete state dict of the network: averaged parameters, and its buffers as they are (all processes)."""
        return {
            key: whole_on_first(value) for key, value in {**self.network.state_dict(), **self.shadows[name]}.items()
        }

    @torch.no_grad()
    def load(self, name: str, tensors: dict[str, Tensor]) -> None:
        """Restores one set of shadows in place from whole tensors."""
        for key, shadow in self.shadows[name].items():
            local(shadow).copy_(local(shard_like(tensors[key], shadow)))

    @contextmanager
    def applied(self, name: str | None = None) -> Iterator[None]:
        """The network has a set of averaged weights (the first, if not named) inside the `with`, its own afterwards."""
        if not self.shadows:
            yield
            return
        own = {key: p.detach().clone() for key, p in self.network.named_parameters()}
        self._write(self.shadows[name or next(iter(self.shadows))])
        try:
            yield
        finally:
            self._write(own)

    @torch.no_grad()
    def _write(self, values: dict[str, Tensor]) -> None:
        for key, p in self.network.named_parameters():
            local(p).copy_(local(values[key]))


def is_short(steps: int | None, decay: float) -> bool:
    """Whether more than e^-10 of an average of fixed decay would still be the random weights that it began with."""
    return steps is not None and steps * (1 - decay) < 10 - 1e-6


def warmed_decay(step: int, decay: float) -> float:
    """beta after `step` steps of a short run: the average spans about their last ninth until `decay` spans less."""
    return min(decay, (1 + step) / (10 + step))


# Power-function EMA and its post-hoc synthesis (Karras et al. 2024, "Analyzing and Improving the Training Dynamics of
# Diffusion Models", section 3 and appendix C): after step t the average weighs step s by
# (gamma + 1) s^gamma / t^(gamma + 1).


def gamma_of(sigma_rel: float) -> float:
    """The exponent whose kernel has standard deviation `sigma_rel`, relative to the training's length, in (0, 0.28)."""
    if not 0 < sigma_rel < 0.28:
        raise ValueError(f"sigma_rel {sigma_rel}: must be between 0 and 0.28")
    # sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)) as a polynomial in gamma
    inverse = sigma_rel**-2
    return float(max(np.roots([1, 7, 16 - inverse, 12 - inverse]).real))


def power_decay(step: int, gamma: float) -> float:
    """beta after `step` completed steps; the first step starts the average afresh."""
    return (1 - 1 / step) ** (gamma + 1)


def kernel_product(step_a: float, gamma_a: float, step_b: float, gamma_b: float) -> float:
    """Integral of the product of two kernels, the inner product in which one is projected onto others."""
    low = min(step_a, step_b)
    exponents = (gamma_a + gamma_b + 1) * math.log(low) - (gamma_a + 1) * math.log(step_a)
    ratio = math.exp(exponents - (gamma_b + 1) * math.log(step_b))
    return (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1) * ratio


def synthesis_weights(snapshots: list[tuple[float, float]], step: float, sigma_rel: float) -> list[float]:
    """Weights, of sum 1, of different (step, gamma) snapshots that together come nearest to `sigma_rel` at `step`.

    The least squares fit of the kernels does not sum to 1 by itself; without that the weights of a network would shrink
    or grow as a whole.
    """
    gamma = gamma_of(sigma_rel)
    gram = np.array([[kernel_product(*a, *b) for b in snapshots] for a in snapshots])
    target = np.array([kernel_product(*a, step, gamma) for a in snapshots])
    weights = np.linalg.solve(gram, target)
    return [float(w) for w in weights / weights.sum()]
