import math

import pytest
import torch

from epg.denoiser import Denoiser, bind, clamped
from epg.guidance import Autoguidance, IntervalGuidance
from tests.helpers import EvaluationCounter, tiny_config, tiny_denoiser, tiny_epg

LABELS = torch.tensor([0, 2])
X = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    return tiny_denoiser().requires_grad_(False)


@pytest.mark.parametrize("scale", [0.0, 0.5, 2.5])
def test_formula_inside_the_interval(denoiser, scale):
    guided = IntervalGuidance(denoiser, LABELS, scale, (0.19, 1.61))(X, 1.0)
    c, u = denoiser(X, 1.0, LABELS), denoiser(X, 1.0, None)
    assert (c - u).abs().max() > 0.1
    assert torch.allclose(guided, u + scale * (c - u), rtol=1e-4, atol=1e-5)  # a batch of 4 against batches of 2


@pytest.mark.parametrize("sigma", [0.01, 0.19, 1.6100001, 80.0])
def test_conditional_outside_the_interval(denoiser, sigma):
    with EvaluationCounter(denoiser) as counter:
        out = IntervalGuidance(denoiser, LABELS, 2.5, (0.19, 1.61))(X, sigma)
    assert torch.equal(out, denoiser(X, sigma, LABELS))
    assert counter.images == 2


@pytest.mark.parametrize(("sigma", "acts"), [(0.19, False), (0.1900001, True), (1.61, True), (1.6100001, False)])
def test_low_is_excluded_and_high_included(denoiser, sigma, acts):
    for guidance in (
        IntervalGuidance(denoiser, LABELS, 2.5, (0.19, 1.61)),
        Autoguidance(bind(denoiser, LABELS), bind(denoiser, None), 2.5, (0.19, 1.61)),
    ):
        with EvaluationCounter(denoiser) as counter:
            guidance(X, sigma)
        assert counter.images == (4 if acts else 2)


def test_default_interval_is_everywhere(denoiser):
    for sigma in (1e-6, 1e6):
        with EvaluationCounter(denoiser) as counter:
            IntervalGuidance(denoiser, LABELS, 2.0)(X, sigma)
        assert counter.images == 4


def test_scale_1_costs_nothing(denoiser):
    for guidance in (
        IntervalGuidance(denoiser, LABELS, 1.0),
        Autoguidance(bind(denoiser, LABELS), bind(denoiser, None), 1.0),
    ):
        with EvaluationCounter(denoiser) as counter:
            assert torch.equal(guidance(X, 1.0), denoiser(X, 1.0, LABELS))
        assert counter.images == 4  # two of guidance, two of the comparison


def test_autoguidance_formula(denoiser):
    weak = tiny_denoiser(seed=1)
    guided = Autoguidance(bind(denoiser, LABELS), bind(weak, LABELS), 1.7)(X, 0.7)
    d, g = denoiser(X, 0.7, LABELS), weak(X, 0.7, LABELS)
    assert torch.allclose(guided, g + 1.7 * (d - g), atol=1e-6)
    assert not torch.allclose(guided, d, atol=1e-2)


def test_autoguidance_of_networks_that_are_replayed():
    """As CUDA graphs: what a network gave is overwritten by what the next one gives."""
    memory = torch.empty_like(X)
    d, g = (lambda x, sigma, factor=factor: memory.copy_(factor * x) for factor in (2.0, 3.0))
    assert torch.allclose(Autoguidance(d, g, 2.0)(X, 0.7), X)


def test_counter_stops_counting_outside(denoiser):
    with EvaluationCounter(denoiser) as counter:
        denoiser(X, 1.0)
        denoiser(X[:1], 1.0)
    denoiser(X, 1.0)
    assert counter.images == 3


# Denoiser -----------------------------------------------------------------------------------------------------------


def test_x_parameterisation():
    network = tiny_epg().requires_grad_(False)
    t = 2.0
    expected = network(X / math.hypot(t, 0.5), torch.full((2,), 250 * math.log(t)), LABELS)
    assert torch.allclose(Denoiser(network, "x")(X, t, LABELS), expected, rtol=1e-4, atol=1e-5)


def test_edm_parameterisation():
    network, t, smin = tiny_epg().requires_grad_(False), 2.0, 0.008
    f = Denoiser(network, "x")(X, t, LABELS)
    expected = 0.25 / ((t - smin) ** 2 + 0.25) * X + (t - smin) * 0.5 / math.hypot(t, 0.5) * f
    assert torch.allclose(Denoiser(network, "edm", sigma_min=smin)(X, t, LABELS), expected, rtol=1e-5, atol=1e-6)


def test_edm_parameterisation_is_the_identity_at_sigma_min():
    denoiser = Denoiser(tiny_epg(), "edm", sigma_min=0.25)
    assert torch.equal(denoiser(X, 0.25, LABELS), X)


def test_levels_per_sample_or_one_number(denoiser):
    assert torch.equal(denoiser(X, torch.tensor([2.0, 2.0]), LABELS), denoiser(X, 2.0, LABELS))
    both = denoiser(X, torch.tensor([2.0, 0.1]), LABELS)
    assert torch.allclose(both[1], denoiser(X, 0.1, LABELS)[1], rtol=1e-4, atol=1e-5)


def test_float64_comes_back_as_float64():
    network = tiny_epg(tiny_config()).double()
    assert Denoiser(network, "edm")(X.double(), 1.0, LABELS).dtype == torch.float64


def test_clamped_per_channel():
    low, high = torch.tensor([-1.0, -0.5]).view(2, 1, 1), torch.tensor([1.0, 0.25]).view(2, 1, 1)
    out = clamped(lambda x, sigma: 10 * x, (low, high))(torch.tensor([[-1.0, -1], [1, 1]]).view(2, 2, 1, 1), 1.0)
    assert out.flatten().tolist() == [-1, -0.5, 1, 0.25]
