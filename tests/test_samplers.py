"""A Gaussian N(mu, s^2) has an analytic denoiser, an exact ODE solution and known statistics."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from epg import samplers, schedule
from epg.denoiser import bind
from epg.guidance import IntervalGuidance
from tests.helpers import EvaluationCounter, tiny_denoiser

MU, S = 0.3, 0.5


def gaussian(x: Tensor, t: float) -> Tensor:
    """E[data | data + t eps = x]."""
    return (S**2 * x + t**2 * MU) / (S**2 + t**2)


def solution(x: Tensor, start: float, end: float) -> Tensor:
    """Where the PF-ODE carries x from level `start` to level `end`."""
    return MU + (x - MU) * math.sqrt((S**2 + end**2) / (S**2 + start**2))


def prior(n: int, t: float) -> Tensor:
    """Samples of the data with noise of level t."""
    z = torch.randn(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return MU + math.sqrt(S**2 + t**2) * z


def noise(i: int, n: int = 20_000) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(100 + i), dtype=torch.float64)


@pytest.mark.parametrize(("sampler", "order"), [(samplers.euler, 1), (samplers.heun, 2)])
def test_convergence_order(sampler, order):
    x = torch.linspace(-100, 100, 9, dtype=torch.float64)
    steps, errors = [64, 128, 256, 512, 1024], []
    for n in steps:
        sigmas = schedule.sampling_grid(n, to_zero=False)
        errors.append((sampler(gaussian, x, sigmas) - solution(x, 80.0, 0.002)).abs().max().item())
    slope = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert slope == pytest.approx(order, abs=0.1)
    assert errors == sorted(errors, reverse=True)


def test_heun_is_far_more_accurate_than_euler():
    x, sigmas = torch.linspace(-100, 100, 9, dtype=torch.float64), schedule.sampling_grid(32, to_zero=False)
    exact = solution(x, 80.0, 0.002)
    heun, euler = ((f(gaussian, x, sigmas) - exact).abs().max() for f in (samplers.heun, samplers.euler))
    assert heun < euler / 4


def test_one_euler_and_one_heun_step_by_hand():
    x, sigmas = torch.tensor([2.0], dtype=torch.float64), torch.tensor([4.0, 1.0], dtype=torch.float64)
    d1 = (2.0 - gaussian(torch.tensor(2.0), 4.0).item()) / 4
    assert samplers.euler(gaussian, x, sigmas).item() == pytest.approx(2 - 3 * d1, rel=1e-6)
    d2 = (2 - 3 * d1 - gaussian(torch.tensor(2 - 3 * d1), 1.0).item()) / 1
    assert samplers.heun(gaussian, x, sigmas).item() == pytest.approx(2 - 3 * (d1 + d2) / 2, rel=1e-6)


@pytest.mark.parametrize("shift", [1.0, 4.0])
@pytest.mark.parametrize("sampler", [samplers.euler, samplers.heun])
def test_final_step_to_zero_ends_on_the_denoised_image(sampler, shift):
    x = torch.linspace(-50, 50, 5, dtype=torch.float64)
    before = sampler(gaussian, x, schedule.sampling_grid(16, shift=shift, to_zero=False))
    after = sampler(gaussian, x, schedule.sampling_grid(16, shift=shift))
    assert torch.allclose(after, gaussian(before, shift * 0.002), rtol=1e-12)


@pytest.mark.parametrize("name", ["euler", "heun", "euler_ancestral", "edm_stochastic"])
def test_statistics_of_the_samples(name):
    """20,000 samples: standard errors are 0.0035 of the mean and 0.0025 of the std; 4 of them, plus the steps' bias."""
    steps = {"euler": 400, "heun": 40, "euler_ancestral": 400, "edm_stochastic": 60}[name]
    x, sigmas = prior(20_000, 80.0), schedule.sampling_grid(steps)
    sampler = getattr(samplers, name)
    if name == "edm_stochastic":
        out = sampler(gaussian, x, sigmas, noise, s_noise=1.0, s_churn=20.0)
    elif name == "euler_ancestral":
        out = sampler(gaussian, x, sigmas, noise)
    else:
        out = sampler(gaussian, x, sigmas)
    assert out.mean().item() == pytest.approx(MU, abs=0.014)
    assert out.std().item() == pytest.approx(S, abs=0.014)


def test_stochastic_samplers_use_the_noise():
    x, sigmas = prior(1000, 80.0), schedule.sampling_grid(20)
    for sampler in (samplers.edm_stochastic, samplers.euler_ancestral):
        a = sampler(gaussian, x, sigmas, lambda i: noise(i, 1000))
        b = sampler(gaussian, x, sigmas, lambda i: noise(i + 50, 1000))
        assert (a - b).abs().mean() > 0.1


def test_stochastic_noise_scale_widens_the_samples():
    x, sigmas = prior(20_000, 80.0), schedule.sampling_grid(40)
    a, b = (samplers.edm_stochastic(gaussian, x, sigmas, noise, s_noise=s).std() for s in (1.0, 1.05))
    assert b > a + 0.003


def no_noise(i: int) -> Tensor:
    raise AssertionError("a deterministic sampler drew noise")


def test_ancestral_without_eta_is_euler():
    x, sigmas = prior(100, 80.0), schedule.sampling_grid(20)
    assert torch.equal(
        samplers.euler_ancestral(gaussian, x, sigmas, no_noise, eta=0.0), samplers.euler(gaussian, x, sigmas)
    )


def test_stochastic_without_churn_is_heun():
    x, sigmas = prior(100, 80.0), schedule.sampling_grid(20)
    assert torch.equal(
        samplers.edm_stochastic(gaussian, x, sigmas, no_noise, s_churn=0.0), samplers.heun(gaussian, x, sigmas)
    )


def test_churn_only_inside_its_range():
    sigmas = schedule.sampling_grid(20)
    drawn = []

    def recorded(i: int) -> Tensor:
        drawn.append(i)
        return noise(i, 10)

    samplers.edm_stochastic(gaussian, prior(10, 80.0), sigmas, recorded, s_min=0.1, s_max=10.0)
    assert drawn == [i for i, t in enumerate(sigmas[:-1].tolist()) if 0.1 <= t <= 10]


def test_one_step_evaluates_once_at_the_first_level():
    calls = []

    def denoise(x: Tensor, t: float) -> Tensor:
        calls.append(t)
        return gaussian(x, t)

    x = prior(10, 80.0)
    out = samplers.one_step(denoise, x, schedule.multistep_grid(1, shift=0.5))
    assert calls == pytest.approx([40.0])
    assert torch.equal(out, gaussian(x, calls[0]))


def test_multistep_evaluates_once_at_every_positive_level():
    calls = []

    def denoise(x: Tensor, t: float) -> Tensor:
        calls.append((t, x.std().item()))
        return solution(x, t, 0.0)  # a perfect consistency model

    sigmas = torch.tensor([80.0, 5.0, 1.0, 0.0], dtype=torch.float64)
    out = samplers.multistep(denoise, prior(20_000, 80.0), sigmas, noise)
    assert [t for t, _ in calls] == [80.0, 5.0, 1.0]
    for t, std in calls:
        assert std == pytest.approx(math.hypot(S, t), rel=0.03)  # 4 standard errors
    assert out.mean().item() == pytest.approx(MU, abs=0.014)
    assert out.std().item() == pytest.approx(S, abs=0.014)


# Evaluations of a real network ----------------------------------------------------------------------------------------


def unit(i: int) -> Tensor:
    return torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(i))


@pytest.mark.parametrize(
    ("name", "evaluations", "watched"),
    [
        ("euler", 32, 32),
        ("heun", 63, 32),
        ("edm_stochastic", 63, 32),
        ("euler_ancestral", 32, 32),
        ("one_step", 1, 1),
        ("multistep", 32, 32),
    ],
)
@torch.no_grad()
def test_evaluations_and_watch(name, evaluations, watched):
    denoiser, sigmas = tiny_denoiser(), schedule.sampling_grid(32)
    seen = []
    arguments = [unit] if name in ("edm_stochastic", "euler_ancestral", "multistep") else []
    with EvaluationCounter(denoiser) as counter:
        x = getattr(samplers, name)(
            bind(denoiser, None), 80 * unit(-1), sigmas, *arguments, watch=lambda *seen_now: seen.append(seen_now)
        )
    assert counter.images / 2 == evaluations
    assert [i for i, *_ in seen] == list(range(watched))
    assert torch.equal(seen[-1][1], x)
    assert all(denoised.shape == x.shape for *_, denoised in seen)


@torch.no_grad()
def test_the_paper_figure_of_75_evaluations():
    """Heun with 32 levels: 63, and 12 unconditional ones inside the interval (table 1)."""
    denoiser, shift = tiny_denoiser(), 4.0
    guidance = IntervalGuidance(denoiser, torch.tensor([0, 1]), 2.0, (0.19 * shift, 1.61 * shift))
    with EvaluationCounter(denoiser) as counter:
        samplers.heun(guidance, 320 * unit(0), schedule.sampling_grid(32, shift=shift))
    assert counter.images / 2 == 75


def test_a_sampler_leaves_its_input_alone():
    x, sigmas = prior(10, 80.0), schedule.sampling_grid(8)
    before = x.clone()
    for sampler in (samplers.euler, samplers.heun, samplers.one_step):
        sampler(gaussian, x, sigmas)
    for sampler in (samplers.euler_ancestral, samplers.edm_stochastic, samplers.multistep):
        sampler(gaussian, x, sigmas, lambda i: noise(i, 10))
    assert torch.equal(x, before)
