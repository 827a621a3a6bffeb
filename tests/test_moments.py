"""Matching moments: the distance and its gradient against closed forms, and the step that is made of it."""

import pytest
import torch
from torch import Tensor

from epg.moments import Moments, Sums, principal_axes

SIZE = 5


def covariance(seed: int, size: int = SIZE) -> Tensor:
    half = torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return half @ half.T + 0.1 * torch.eye(size, dtype=torch.float64)


def symmetric_root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ values.sqrt().diag() @ vectors.T


def features(count: int, seed: int = 1, size: int = SIZE) -> Tensor:
    return torch.randn(count, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def every(values: Tensor) -> Tensor:
    return torch.ones(len(values), dtype=values.dtype)


def alike(values: Tensor) -> Tensor:
    """All of one class."""
    return torch.zeros(len(values), dtype=torch.int64)


def real(count: int = 90, size: int = SIZE, classes: int = 1) -> tuple[Tensor, Tensor]:
    """Features of several classes, unlike in size, place and spread, and their labels."""
    labels = (torch.arange(count) % (classes + 1)).clamp(max=classes - 1)
    mixed = features(count, 20, size) @ symmetric_root(covariance(21, size))
    return (1 + labels[:, None]) * mixed + 3 * labels[:, None] + torch.arange(size), labels


def moments(decay: float = 0.0, size: int = SIZE, classes: int = 1, shared: bool = True) -> Moments:
    """With the reference of `real`."""
    found = Moments(size, decay, classes, shared).double()
    sums = found.sums(torch.device("cpu"))
    phi, labels = real(size=size, classes=classes)
    sums.add(phi, labels, every(phi))
    found.set_reference(sums)
    return found


def gaussian(phi: Tensor) -> tuple[Tensor, Tensor]:
    centred = phi - phi.mean(0)
    return phi.mean(0), centred.T @ centred / len(phi)


def frechet(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> Tensor:
    """Written in another way, by the root of a matrix that is not symmetric."""
    roots = torch.linalg.eigvals(cov1 @ cov2).real.clamp(min=0).sqrt().sum()
    return (mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * roots


def test_distance_of_a_batch_is_the_frechet_distance_of_its_moments() -> None:
    phi, found = features(40), moments()
    distance = found(phi, alike(phi), every(phi)) * found.scale**2  # decay 0: the batch is all there is
    assert float(distance) == pytest.approx(float(frechet(*gaussian(phi), *gaussian(real()[0]))), rel=1e-10)


def test_distance_of_classes_is_that_of_each_by_its_share() -> None:
    (phi, labels), (seen, whose) = real(classes=3), (features(60), torch.arange(60) % 3)
    own, shared = moments(classes=3, shared=False), moments(classes=3)
    shares = [float((labels == c).double().mean()) for c in range(3)]
    assert len(set(shares)) > 1
    parts = [frechet(*gaussian(seen[whose == c]), *gaussian(phi[labels == c])) for c in range(3)]
    expected = sum(share * float(part) for share, part in zip(shares, parts, strict=True))
    assert float(own(seen, whose, every(seen)) * own.scale**2) == pytest.approx(expected, rel=1e-10)
    gaps = [seen[whose == c].mean(0) - phi[labels == c].mean(0) for c in range(3)]
    within = [torch.cat([gaussian(x[y == c])[1][None] * float((y == c).sum()) for c in range(3)]).sum(0) / len(x)
              for x, y in ((seen, whose), (phi, labels))]  # fmt: skip
    nought = torch.zeros(SIZE).double()
    expected = sum(share * float(gap.square().sum()) for share, gap in zip(shares, gaps, strict=True))
    expected += float(frechet(nought, within[0], nought, within[1]))
    assert float(shared(seen, whose, every(seen)) * shared.scale**2) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("shared", [True, False])
def test_distance_to_itself_is_nothing(shared: bool) -> None:
    at_home = moments(classes=3, shared=shared)
    sums, (phi, labels) = at_home.sums(torch.device("cpu")), real(classes=3)
    sums.add(phi, labels, every(phi))
    at_home.start(sums)
    assert float(at_home.distance()[0]) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("shared", [True, False])
def test_gradient_is_that_of_finite_differences(shared: bool) -> None:
    phi, labels = features(30).requires_grad_(), torch.arange(30) % 3

    def distance(x: Tensor) -> Tensor:
        return moments(classes=3, shared=shared)(x, labels, every(x))

    assert torch.autograd.gradcheck(distance, (phi,), eps=1e-6, atol=1e-6)


def test_gradient_where_nothing_varies() -> None:
    """A feature that is constant among the real ones: the gradient by its variance is 0, that of the others as ever,
    whether its axis takes part in products or not."""

    def constant(trimmed: bool) -> Moments:
        found, sums = Moments(5, 0.0).double(), Sums(5, 1, 1, torch.device("cpu"))
        phi, _ = real()
        phi[:, 4] = 2.0
        sums.add(phi, alike(phi), every(phi))
        found.set_reference(sums)
        if trimmed:
            found.trim()
        assert found.still == trimmed
        return found

    seen = features(30, 3)
    seen[:, 4] = 2.0
    seen.requires_grad_()
    distance = constant(True)(seen, alike(seen), every(seen))
    (gradient,) = torch.autograd.grad(distance, seen)
    (whole,) = torch.autograd.grad(constant(False)(seen, alike(seen), every(seen)), seen)
    assert torch.allclose(gradient, whole, rtol=1e-10)
    step = 1e-6 * features(30, 4)
    step[:, 4] = 0
    with torch.no_grad():
        up, down = (constant(True)(seen + sign * step, alike(seen), every(seen)) for sign in (1, -1))
    assert float((gradient * step).sum()) == pytest.approx(float(up - down) / 2, rel=1e-4)
    assert bool(torch.isfinite(gradient).all())


def test_value_is_of_the_running_moments_and_gradient_of_the_batch() -> None:
    slow, phi = moments(decay=0.9), features(20).requires_grad_()
    sums = slow.sums(torch.device("cpu"))
    start = features(200, 7)
    sums.add(start, alike(start), every(start))
    slow.start(sums)
    before = slow.mean.clone()
    distance = slow(phi, alike(phi), every(phi))
    # 200 of before count as 0.9 * 200 = 180, so 20 new ones are a tenth
    assert torch.allclose(slow.mean, 0.9 * before + 0.1 * slow.in_units(phi, alike(phi)).mean(0))
    assert float(slow.count) == pytest.approx(200)
    axes, x = slow.axes[0], slow.in_units(phi.detach(), alike(phi))
    back = torch.linalg.inv(axes)
    running = back.T @ slow.products[0] @ back - slow.mean[0].outer(slow.mean[0])
    nought = torch.zeros_like(slow.mean[0])
    expected = frechet(slow.mean[0], running, nought, axes @ axes.T)
    assert float(distance.detach()) == pytest.approx(float(expected), rel=1e-10)
    (gradient,) = torch.autograd.grad(distance, phi)
    # every image is moved away from where optimal transport of the running Gaussian to the real one takes it
    root = symmetric_root(axes @ axes.T)
    moved = (x - slow.mean) @ root @ torch.linalg.inv(symmetric_root(root @ running @ root)) @ root
    assert torch.allclose(gradient, 2 * (x - moved) / 20 / slow.scale)


def test_only_what_counts_is_taken_in() -> None:
    phi = features(60)
    which = (torch.arange(60) % 3 == 0).double()
    some, alone, none = moments(), moments(), moments(decay=0.5)
    part = phi[::3]
    assert float(some(phi, alike(phi), which)) == pytest.approx(float(alone(part, alike(part), every(part))), rel=1e-12)
    sums = none.sums(torch.device("cpu"))
    sums.add(phi, alike(phi), every(phi))
    none.start(sums)
    before = [buffer.clone() for buffer in none.buffers()]
    assert bool(torch.isfinite(none(phi, alike(phi), torch.zeros(60).double())))
    assert all(torch.equal(a, b) for a, b in zip(before, none.buffers(), strict=True))


def test_a_class_that_is_missing_in_a_batch_stays_as_it_is() -> None:
    found = moments(decay=0.9, classes=3, shared=False)
    sums, (phi, labels) = found.sums(torch.device("cpu")), real(classes=3)
    sums.add(phi, labels, every(phi))
    found.start(sums)
    before = found.products.clone()
    seen = features(20)
    found(seen, torch.arange(20) % 2, every(seen))
    assert torch.equal(found.products[2], before[2])
    assert not torch.equal(found.products[1], before[1])


def test_surprise_is_that_of_gaussians_with_one_covariance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("epg.moments.RIDGE", 0.0)
    found, (phi, labels) = moments(classes=3), real(classes=3)
    within = sum(gaussian(phi[labels == c])[1] * float((labels == c).double().mean()) for c in range(3))
    seen, whose = features(12, 5), torch.arange(12) % 3
    chances = torch.stack([
        torch.distributions.MultivariateNormal(phi[labels == c].mean(0), within).log_prob(seen)
        + (labels == c).double().mean().log() for c in range(3)])  # fmt: skip
    expected = -(chances - chances.logsumexp(0))[whose, torch.arange(12)].mean()
    assert float(found.surprise(seen, whose, every(seen))) == pytest.approx(float(expected), rel=1e-8)


def test_axes_and_sums() -> None:
    axes = principal_axes(covariance(3))
    assert torch.allclose(axes @ axes.T, covariance(3))
    sums, phi, labels = Sums(SIZE, 2, 1, torch.device("cpu")), features(50), torch.arange(50) % 2
    weights = torch.arange(50).double()
    for part in range(0, 50, 20):
        chosen = slice(part, part + 20)
        sums.add(phi[chosen], labels[chosen], weights[chosen])
    counts, mean, second = sums.moments()
    repeated = phi.repeat_interleave(weights.long(), 0)
    assert counts.tolist() == [600.0, 625.0]
    assert torch.allclose(mean[1], phi[1::2].repeat_interleave(weights[1::2].long(), 0).mean(0))
    assert torch.allclose(second[0], repeated.T @ repeated / len(repeated))
