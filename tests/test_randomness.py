import dataclasses

import pytest
import torch

from epg.randomness import Draws, generator, key
from tests.helpers import tiny_config

CPU = torch.device("cpu")


def draws(step: int = 0, first: int = 0, count: int = 64, seed: int = 0, block: int = 16) -> Draws:
    return Draws(seed, step, first, count, block, CPU)


def test_key_is_a_function_of_its_parts():
    assert key(1, "noise", 2) == key(1, "noise", 2)
    parts = [(1, "noise", 2), (1, "noise", 3), (2, "noise", 1), (1, "level", 2), (1, "noise", "2"), (12, "noise"), (1,)]
    assert len({key(*p) for p in parts}) == len(parts)
    assert all(0 <= key(*p) < 2**63 for p in parts)


def test_key_never_changes():
    """Recorded runs resume only if this stays what it is."""
    assert (key(0, "noise", 0, 0), key(7, "weights")) == (4063383840384102632, 2370708682607018381)


def test_generator():
    a, b = (torch.randn(5, generator=generator("cpu", 3, "x")) for _ in range(2))
    assert torch.equal(a, b)


@pytest.mark.parametrize(("batch", "block"), [(1024, 16), (48, 16), (24, 8), (10, 2), (7, 1), (16, 16)])
def test_block_size(batch, block):
    assert tiny_config(training={"batch_size": batch}).random_block == block


@pytest.mark.parametrize("name", ["normal", "uniform"])
def test_independent_of_the_split(name):
    whole = getattr(draws(), name)("noise", (3, 2))
    assert whole.shape == (64, 3, 2)
    for size in (16, 32):
        parts = [getattr(draws(first=first, count=size), name)("noise", (3, 2)) for first in range(0, 64, size)]
        assert torch.equal(torch.cat(parts), whole)


def test_independent_of_order_and_history():
    a = draws()
    first = a.normal("noise")
    a.uniform("other")
    torch.rand(100)
    assert torch.equal(a.normal("noise"), first)


@pytest.mark.parametrize("other", [{"step": 1}, {"seed": 1}, {"first": 4096}])
def test_steps_seeds_and_places_are_uncorrelated(other):
    a, b = (draws(count=4096, **o).normal("noise") for o in ({}, other))
    assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1].item()) < 0.063  # 4 standard errors


def test_purposes_are_uncorrelated():
    a, b = (draws(count=4096).normal(purpose) for purpose in ("noise", "level"))
    assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1].item()) < 0.063


def test_blocks_are_uncorrelated():
    blocks = draws(count=32).normal("noise", (1000,)).view(2, -1)
    assert abs(torch.corrcoef(blocks)[0, 1].item()) < 0.032


def test_distributions():
    """65,536 numbers: standard errors 0.0039 and 0.0011."""
    z, u = draws(count=4096).normal("z", (16,)), draws(count=4096).uniform("u", (16,))
    assert z.mean().item() == pytest.approx(0, abs=0.016)
    assert z.std().item() == pytest.approx(1, abs=0.012)
    assert u.mean().item() == pytest.approx(0.5, abs=0.0046)
    assert 0 <= u.min() < 0.01
    assert 0.99 < u.max() < 1


def test_dtype():
    double = dataclasses.replace(draws(), dtype=torch.float64).normal("z")
    assert double.dtype == torch.float64
    assert torch.equal(double, draws().normal("z").double())


@pytest.mark.parametrize(("first", "count"), [(8, 16), (0, 8), (0, 24), (16, 20)])
def test_misaligned_blocks_are_refused(first, count):
    with pytest.raises(ValueError, match=f"samples {first}\\+{count} are no whole blocks of 16"):
        draws(first=first, count=count)


def test_shared_integer():
    values = [draws(step=s, first=f).shared_integer("level", 20) for s in range(400) for f in (0, 64)]
    assert values[::2] == values[1::2]
    assert set(values) == set(range(20))  # 400 draws miss one of 20 with p < 1e-7
    assert draws(step=5).shared_integer("level", 1) == 0
