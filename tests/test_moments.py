"""Matching moments: the distance and its gradient against closed forms, and the step that is made of it."""

import pytest
import torch
from torch import Tensor

from epg.moments import Moments, Sums, symmetric_root

SIZE = 5


def covariance(seed: int, size: int = SIZE) -> Tensor:
    half = torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return half @ half.T + 0.1 * torch.eye(size, dtype=torch.float64)


def moments(decay: float = 0.0, size: int = SIZE) -> Moments:
    """With a real covariance and mean that are known."""
    found = Moments(size, decay).double()
    mean = torch.arange(size, dtype=torch.float64)
    found.set_reference(mean, covariance(0, size), torch.ones(size, dtype=torch.float64))
    return found


def features(count: int, seed: int = 1, size: int = SIZE) -> Tensor:
    return torch.randn(count, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def every(values: Tensor) -> Tensor:
    return torch.ones(len(values), dtype=values.dtype)


def frechet(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> Tensor:
    """Written in another way, by the root of a matrix that is not symmetric."""
    roots = torch.linalg.eigvals(cov1 @ cov2).real.clamp(min=0).sqrt().sum()
    return (mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * roots


def test_distance_of_a_batch_is_the_frechet_distance_of_its_moments() -> None:
    phi = features(40)
    found = moments()(phi, every(phi))  # decay 0: the batch is all there is
    centred = phi - phi.mean(0)
    expected = frechet(phi.mean(0), centred.T @ centred / len(phi), torch.arange(SIZE).double(), covariance(0))
    assert float(found) == pytest.approx(float(expected), rel=1e-10)


def test_distance_to_itself_is_nothing() -> None:
    at_home = moments()
    at_home.start(torch.arange(SIZE).double(), covariance(0) + torch.outer(torch.arange(SIZE), torch.arange(SIZE)))
    assert float(at_home.distance(at_home.mean, at_home.second)) == pytest.approx(0, abs=1e-10)


def test_gradient_is_that_of_finite_differences() -> None:
    phi = features(12).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: moments()(x, every(x)), (phi,), eps=1e-6, atol=1e-6)


def test_gradient_where_labels_make_the_covariance_singular() -> None:
    """Onehot columns sum to 1, so that one direction never varies: the gradient there is 0, and elsewhere the one of
    the other directions."""
    labels = torch.arange(30) % 3
    real = torch.cat([features(30, 2, 2), torch.nn.functional.one_hot(labels, 3).double()], dim=1)
    found = Moments(5, 0.0).double()
    mean = real.mean(0)
    found.set_reference(mean, (real - mean).T @ (real - mean) / 30, torch.ones(5, dtype=torch.float64))
    phi = (real + 0.3 * features(30, 3)).detach()
    phi[:, 2:] = real[:, 2:]
    phi.requires_grad_()
    distance = found(phi, every(phi))
    (gradient,) = torch.autograd.grad(distance, phi)
    step = 1e-6 * features(30, 4)
    step[:, 2:] = 0
    with torch.no_grad():
        up, down = (found(phi + sign * step, every(phi)) for sign in (1, -1))
    assert float((gradient * step).sum()) == pytest.approx(float(up - down) / 2, rel=1e-4)
    assert bool(torch.isfinite(gradient).all())


def test_value_is_of_the_running_moments_and_gradient_of_the_batch() -> None:
    slow, phi = moments(decay=0.9), features(20).requires_grad_()
    start = features(1000, 7)
    slow.start(start.mean(0), start.T @ start / 1000)
    before = slow.mean.clone()
    distance = slow(phi, every(phi))
    assert torch.allclose(slow.mean, 0.9 * before + 0.1 * slow.in_units(phi).mean(0))
    assert float(distance.detach()) == pytest.approx(float(slow.distance(slow.mean, slow.second)), rel=1e-12)
    (gradient,) = torch.autograd.grad(distance, phi)
    mean, second = slow.mean.clone().requires_grad_(), slow.second.clone().requires_grad_()
    by_mean, by_second = torch.autograd.grad(slow.distance(mean, second), (mean, second))
    x = slow.in_units(phi.detach())
    assert torch.allclose(gradient, (by_mean + x @ (by_second + by_second.T)) / 20)


def test_only_what_counts_is_taken_in() -> None:
    phi = features(60)
    which = (torch.arange(60) % 3 == 0).double()
    some, alone, none = moments(), moments(), moments(decay=0.5)
    assert float(some(phi, which)) == pytest.approx(float(alone(phi[::3], every(phi[::3]))), rel=1e-12)
    before = none.second.clone()
    assert bool(torch.isfinite(none(phi, torch.zeros(60).double())))
    assert torch.equal(none.second, before)


def test_root_and_sums() -> None:
    assert torch.allclose(symmetric_root(covariance(3)) @ symmetric_root(covariance(3)), covariance(3))
    sums, phi = Sums(SIZE, torch.device("cpu")), features(50)
    weights = torch.arange(50).double()
    for part in range(0, 50, 20):
        sums.add(phi[part : part + 20], weights[part : part + 20])
    mean, second = sums.moments()
    repeated = phi.repeat_interleave(weights.long(), 0)
    assert torch.allclose(mean, repeated.mean(0))
    assert torch.allclose(second, repeated.T @ repeated / len(repeated))
