"""Densities, weights and grids as choices: on Gaussian data they agree on what is right."""

import math
from itertools import pairwise
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from epg import samplers
from epg.config.diffusion import Density, DiffusionConfig, Weighting
from epg.config.sections import NoiseConfig, SamplingConfig
from epg.grids import grid_of
from epg.objectives.diffusion import Diffusion
from epg.weighting import Weighting as Weigher
from epg.weighting import drawn_levels
from tests.helpers import tiny_config, tiny_epg
from tests.test_samplers import MU, S, gaussian, solution

NOISE = NoiseConfig(scale=2.0)
CHOICES = [(density, weighting) for density in get_args(Density) for weighting in get_args(Weighting)]


class Assumed(nn.Module):
    """The denoiser of data N(MU, theta S^2): the best one of N(MU, S^2) is that of theta = 1."""

    theta = 1.0

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None, internal: bool = False) -> Tensor:
        t = t.view(-1, 1, 1, 1)
        return (self.theta * S**2 * x + t**2 * MU) / (self.theta * S**2 + t**2)


@pytest.mark.parametrize("rounding", [True, False])
@pytest.mark.parametrize(("density", "weighting"), CHOICES)
def test_every_choice_has_the_same_minimiser(density: str, weighting: str, rounding: bool) -> None:
    choice: dict[str, Any] = {"density": density, "weighting": weighting, "rounding": rounding}
    config = tiny_config("diffusion", objective=choice, noise={"shift": 2.0})
    objective = Diffusion(tiny_epg(config), config)
    objective.denoiser = assumed = Assumed()
    g = torch.Generator().manual_seed(0)
    images, noise = (torch.randn(8192, 1, 8, 8, generator=g) for _ in range(2))
    unit = torch.special.ndtri((torch.arange(8192) + 0.5) / 8192)
    losses = []
    thetas = (0.7, 0.9, 1.0, 1.1, 1.4)
    for assumed.theta in thetas:
        found = objective.losses(MU + S * images, None, sigma=objective.levels(unit), noise=noise)
        losses.append(float(found.mean()))
    assert thetas[int(np.argmin(losses))] == 1.0
    assert losses == sorted(losses[:3], reverse=True) + sorted(losses[3:])


@pytest.mark.parametrize(("density", "weighting"), CHOICES)
def test_every_weight_but_the_paper_s_has_the_paper_s_mean(density: Density, weighting: Weighting) -> None:
    """By the quantiles of the density; the paper's own keeps its scale."""
    units = torch.special.ndtri((torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000)
    config = DiffusionConfig(density=density, mean=0.8, std=0.8, weighting=weighting, rounding=False, sigmoid_bias=-2.0)
    mean = float(Weigher(weighting, config, NOISE, 4.0)(drawn_levels(units, config, NOISE, 4.0)).mean())
    paper = Weigher("paper", DiffusionConfig(), NOISE, 4.0)(drawn_levels(units, DiffusionConfig(), NOISE, 4.0)).mean()
    assert float(paper) == pytest.approx(889.6, rel=1e-3)
    assert (mean == pytest.approx(889.6, rel=2e-3)) == (weighting != "paper")


def test_shapes_of_weights() -> None:
    """Relative to level 1, in shifted levels; with scale 1 the velocity's is 1 / t^2."""
    config, noise = DiffusionConfig(sigmoid_bias=1.0), NoiseConfig()
    s = torch.tensor([0.02, 0.1, 1.0, 3.0], dtype=torch.float64)

    def relative_to_one(name: Weighting) -> list[float]:
        weights = Weigher(name, config, noise, 0.5)(s / 0.5)
        return (weights / weights[2]).tolist()

    assert relative_to_one("v") == pytest.approx([100, 11**2 / 4, 1, 16 / 9 / 4])  # 400 at most
    assert relative_to_one("edm") == pytest.approx([(v**2 + 0.25) / (0.25 * v**2) / 5 for v in s.tolist()])
    assert relative_to_one("min_snr") == pytest.approx([20, 20, 1, 1 / 9])
    sigmoid = [1 / (1 + math.e * v**2 / 0.25) for v in s.tolist()]
    assert relative_to_one("sigmoid") == pytest.approx([v / sigmoid[2] for v in sigmoid])


def flow_grid(steps: int, sampler: str = "euler") -> Tensor:
    return grid_of(SamplingConfig(sampler=sampler, steps=steps, grid="uniform_t"), NOISE, 1.0)


def test_euler_in_the_time_of_flow_matching_is_euler() -> None:
    """Steps of z = (1 - t) x along the velocity a eps - x = (z - D) / t, on the same levels: the same to rounding."""
    sigmas = flow_grid(20)
    x = torch.linspace(-100, 100, 9, dtype=torch.float64)
    times = (sigmas / (sigmas + NOISE.scale)).tolist()
    z = (1 - times[0]) * x
    for t, after in pairwise(times):
        z = z + (after - t) * (z - gaussian(z / (1 - t), NOISE.scale * t / (1 - t))) / t
    assert torch.allclose(samplers.euler(gaussian, x, sigmas), z, rtol=1e-12)
    assert torch.allclose(sigmas[:-1], torch.tensor(times[:-1]).double() * 2 / (1 - torch.tensor(times[:-1]).double()))


def test_heun_converges_to_the_same_sample_on_either_grid() -> None:
    x = torch.linspace(-100, 100, 9, dtype=torch.float64)
    steps, exact = [64, 128, 256, 512, 1024], solution(x, 80.0, 0.0)
    errors = [(samplers.heun(gaussian, x, flow_grid(n, "heun")) - exact).abs().max().item() for n in steps]
    assert -np.polyfit(np.log(steps), np.log(errors), 1)[0] == pytest.approx(2, abs=0.1)
    assert errors[-1] < 1e-3
    karras = grid_of(SamplingConfig(steps=1024), NOISE, 1.0)
    assert torch.allclose(samplers.heun(gaussian, x, karras), exact, atol=1e-3)
