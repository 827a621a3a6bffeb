"""Philox against numpy's and the published vectors; independence of division, device and history; distributions."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from epg.randomness import Draws, doubles, integers, key, normal, permutation, philox, philox_state, uniform
from tests.generators import tiny_generator

CPU = torch.device("cpu")


def draws(step: int = 0, first: int = 0, count: int = 64, seed: int = 0) -> Draws:
    return Draws(seed, step, first, count, CPU)


# Keys and words -----------------------------------------------------------------------------------------------------


def test_key_is_a_function_of_its_parts():
    assert key(1, "noise", 2) == key(1, "noise", 2)
    parts = [(1, "noise", 2), (1, "noise", 3), (2, "noise", 1), (1, "level", 2), (1, "noise", "2"), (12, "noise"), (1,)]
    assert len({key(*p) for p in parts}) == len(parts)
    assert all(0 <= key(*p) < 2**128 for p in parts)


def test_numbers_never_change():
    """Recorded runs resume only if these stay what they are."""
    assert key(0, "noise", 0, 0) == 0xB6C1FD5F9D6D4E4915F7898A7F4CE2D
    assert normal([3], (2,), 0, "a", device="cpu").flatten().tolist() == pytest.approx([1.199954, 0.972438], abs=1e-6)
    assert (2**24 * uniform([3], (2,), 0, "a", device="cpu")).tolist() == [[5135101.0, 3493875.0]]
    assert doubles(2, 0, "a").tolist() == [0.17585376188265422, 0.4377928230720033]
    assert permutation(6, 0, "a").tolist() == [0, 5, 4, 3, 1, 2]


@pytest.mark.parametrize(
    ("counter", "secret", "expected"),
    [  # Random123's known answers for philox4x64-10
        (0, 0, "16554d9eca36314c db20fe9d672d0fdc d7e772cee186176b 7e68b68aec7ba23b"),
    ],
)
def test_philox_gives_the_published_numbers(counter, secret, expected):
    words = philox(*philox_state(secret, counter, CPU), 1).numpy().view(np.uint64)[0]
    assert " ".join(f"{word:016x}" for word in words) == expected


@pytest.mark.parametrize("first", [1, 2**32 - 3, 2**61 + 5])
@pytest.mark.parametrize("secret", [1, 2**128 - 1, key("a")])
def test_the_way_of_other_devices_is_numpys(first, secret):
    expected = np.random.Philox(key=secret, counter=first - 1).random_raw(400).view(np.int32).reshape(100, 8)
    assert np.array_equal(philox(*philox_state(secret, first, CPU), 100).numpy(), expected)


def test_numbers_of_images_share_no_32_bits():
    """A key of 32 bits gave images 23716 and 45497 of seed 1 the same noise."""
    noise = tiny_generator().unit_noise([23716, 45497], seed=1)
    assert not torch.equal(noise[0], noise[1])
    assert abs(torch.corrcoef(noise.flatten(1))[0, 1]) < 0.5


def test_no_two_of_100_000_images_share_their_noise():
    """With keys of 32 bits one or two pairs would, with a probability of 0.69."""
    first = normal(range(100_000), (4,), 1, "sample", -1, device="cpu")
    assert len(np.unique(first.numpy(), axis=0)) == 100_000


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("shape", [(), (3, 8, 8), (3, 256, 256)])
@pytest.mark.parametrize("fused", [False, True])
def test_a_gpu_draws_the_same(shape, fused):
    """By numpy where they are few, else by its own operations or a compiled kernel; none makes the host wait."""
    samples = range(5, 12)
    expected = [f(samples, shape, 1, "a", device="cpu") for f in (uniform, normal)]
    found = [f(samples, shape, 1, "a", device="cuda", fused=fused) for f in (uniform, normal)]  # compiling may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = [f(samples, shape, 1, "a", device="cuda", fused=fused) for f in (uniform, normal)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(found[0].cpu(), expected[0])
    torch.testing.assert_close(found[1].cpu(), expected[1], atol=2e-6, rtol=2e-6)


# Independence -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["normal", "uniform"])
@pytest.mark.parametrize("shape", [(), (3,), (3, 2, 2)])
def test_independent_of_the_split(name, shape):
    whole = getattr(draws(), name)("noise", shape)
    assert whole.shape == (64, *shape)
    for cuts in ([0, 16, 32, 48, 64], [0, 1, 64], [0, 7, 20, 63, 64]):
        parts = [getattr(draws(first=a, count=b - a), name)("noise", shape) for a, b in itertools.pairwise(cuts)]
        assert torch.equal(torch.cat(parts), whole)


def test_independent_of_order_and_history():
    a = draws()
    first = a.normal("noise")
    a.uniform("other")
    before = torch.get_rng_state()
    torch.rand(100)
    assert torch.equal(a.normal("noise"), first)
    torch.set_rng_state(before)


def test_any_samples_in_any_order():
    wanted = [5, 6, 7, 2, 9, 9, 2**40 - 1]
    rows = normal(wanted, (3, 3), 0, "a", device="cpu")
    assert all(
        torch.equal(row, normal([i], (3, 3), 0, "a", device="cpu")[0]) for i, row in zip(wanted, rows, strict=True)
    )


@pytest.mark.parametrize("sample", [-1, 2**40])
def test_samples_out_of_range(sample):
    with pytest.raises(ValueError, match=f"sample {sample}: must be between 0 and 2\\^40 - 1"):
        normal([sample], (3,), 0, "a", device="cpu")


@pytest.mark.parametrize("other", [{"step": 1}, {"seed": 1}, {"first": 4096}])
def test_steps_seeds_and_places_are_uncorrelated(other):
    a, b = (draws(count=4096, **o).normal("noise") for o in ({}, other))
    assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1].item()) < 0.063  # 4 standard errors


def test_purposes_are_uncorrelated():
    a, b = (draws(count=4096).normal(purpose) for purpose in ("noise", "level"))
    assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1].item()) < 0.063


# Distributions ------------------------------------------------------------------------------------------------------


def test_distributions():
    """524,288 numbers: moments within 4 standard errors, and Kolmogorov-Smirnov."""
    z, u = draws(count=4096).normal("z", (128,)).double(), draws(count=4096).uniform("u", (128,)).double()
    n = z.numel()
    for power, expected, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert (z**power).mean().item() == pytest.approx(expected, abs=4 * (variance / n) ** 0.5)
    assert stats.kstest(z.flatten().numpy(), "norm").pvalue > 1e-3
    assert stats.kstest(u.flatten().numpy(), "uniform").pvalue > 1e-3
    assert 0 <= u.min() < 1e-4
    assert 1 - 1e-4 < u.max() < 1
    assert 4 < z.abs().max() < 5.8


@pytest.mark.parametrize("name", ["normal", "uniform"])
def test_numbers_of_a_sample_are_independent(name):
    """Of 24 numbers of each of 100,000 samples: the numbers, and their squares, as Box-Muller pairs share a radius."""
    values = getattr(draws(count=100_000), name)("z", (24,)).double()
    for columns in (values, (values - values.mean()) ** 2):
        off_diagonal = torch.corrcoef(columns.T) - torch.eye(24)
        assert off_diagonal.abs().max() < 4.5 / 100_000**0.5


def test_control_the_tests_of_distribution_can_fail():
    z = draws(count=4096).normal("z", (128,)).double().flatten().numpy()
    assert stats.kstest(1.01 * z, "norm").pvalue < 1e-3
    assert stats.kstest(z.clip(-2.5, 2.5), "norm").pvalue < 1e-3


def test_dtype():
    double = dataclasses.replace(draws(), dtype=torch.float64).normal("z")
    assert double.dtype == torch.float64
    assert torch.equal(double, draws().normal("z").double())


def test_shared_integer():
    values = [draws(step=s, first=f).shared_integer("level", 20) for s in range(400) for f in (0, 64)]
    assert values[::2] == values[1::2]
    assert set(values) == set(range(20))  # 400 draws miss one of 20 with p < 1e-7
    assert draws(step=5).shared_integer("level", 1) == 0


def test_integers():
    drawn = integers(7, 70_000, 0, "a")
    assert stats.chisquare(np.bincount(drawn)).pvalue > 1e-3
    assert integers(7, 10, 0, "a").tolist() == drawn[:10].tolist()


def test_permutations_are_equally_likely():
    """Of four: 24, each about 500 times."""
    codes = [tuple(permutation(4, 0, "a", i).tolist()) for i in range(12_000)]
    counts = [codes.count(p) for p in itertools.permutations(range(4))]
    assert sum(counts) == 12_000
    assert stats.chisquare(counts).pvalue > 1e-3
