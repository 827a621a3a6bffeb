"""The order of an endless stream is a permutation in every epoch, keyed by seed and epoch, cheap anywhere."""

import time

import numpy as np
import pytest

from epg.data.order import EpochOrder
from epg.errors import DataError


@pytest.mark.parametrize("length", range(1, 201))
def test_every_epoch_is_a_permutation(length):
    for seed in (0, 1, -7, 2**70):
        order = EpochOrder(length, seed).indices(np.arange(3 * length))
        for epoch in order.reshape(3, length):
            np.testing.assert_array_equal(np.sort(epoch), np.arange(length))


@pytest.mark.parametrize("length", [1000, 4096, 4097, 50_000])
def test_larger_epochs_are_permutations(length):
    for epoch in (0, 5, 10**6):
        indices = EpochOrder(length, 3).indices(epoch * length + np.arange(length))
        np.testing.assert_array_equal(np.sort(indices), np.arange(length))


def test_any_position_alone_equals_the_stream():
    order = EpochOrder(37, seed=5)
    stream = order.indices(np.arange(37 * 50))
    rng = np.random.default_rng(0)
    positions = rng.integers(0, len(stream), (40, 3))
    np.testing.assert_array_equal(order.indices(positions), stream[positions])
    assert [int(order.indices(np.array([p]))[0]) for p in range(100)] == stream[:100].tolist()


def test_epochs_and_seeds_give_unrelated_orders():
    n = 5000
    orders = [EpochOrder(n, seed).indices(epoch * n + np.arange(n)) for seed in (0, 1) for epoch in (0, 1)]
    orders.append(np.arange(n))
    for i, first in enumerate(orders):
        for second in orders[:i]:
            assert (first == second).sum() < 10  # one fixed point is expected
            assert abs(np.corrcoef(first, second)[0, 1]) < 0.06


@pytest.mark.parametrize("length", [2, 3, 5, 10, 17])
def test_every_sample_is_equally_likely_at_every_place(length):
    epochs = 100_000
    order = EpochOrder(length, seed=11).indices(np.arange(epochs * length)).reshape(epochs, length)
    for place in {0, length // 2, length - 1}:
        counts = np.bincount(order[:, place], minlength=length)
        chi_square = ((counts - epochs / length) ** 2 / (epochs / length)).sum()
        assert chi_square < (length - 1) + 5 * np.sqrt(2 * (length - 1))  # 5 standard deviations


def test_neighbours_in_the_stream_are_not_neighbours_in_the_data():
    n = 100_000
    steps = np.abs(np.diff(EpochOrder(n, 2).indices(np.arange(n))))
    assert abs(steps.mean() / n - 1 / 3) < 0.01  # the mean distance of two independent uniform numbers


@pytest.mark.parametrize("length", [10**9, 2**28 + 1])
def test_a_billion_samples_cost_no_memory_and_little_time(length):
    order = EpochOrder(length, 9)
    positions = np.arange(10**6) + 7 * length // 2
    seconds = []
    for _ in range(3):
        start = time.process_time()
        indices = order.indices(positions)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 1
    assert len(np.unique(indices[: length - length // 2])) == 10**6
    assert indices.min() >= 0
    assert indices.max() < length


def test_the_order_never_changes_between_releases():
    # Runs are resumed with newer versions: these numbers may not change.
    assert EpochOrder(10, seed=0).indices(np.arange(20)).tolist() == FROZEN
    assert EpochOrder(16, seed=7).indices(np.arange(16)).tolist() == FROZEN_FULL_DOMAIN


FROZEN = [2, 8, 9, 1, 5, 3, 7, 4, 6, 0, 8, 9, 5, 1, 6, 0, 3, 2, 7, 4]
FROZEN_FULL_DOMAIN = [9, 5, 11, 7, 1, 14, 0, 3, 4, 6, 15, 8, 10, 13, 12, 2]


def test_empty_positions_and_empty_data():
    assert EpochOrder(3, 0).indices(np.empty((0, 2), np.int64)).shape == (0, 2)
    with pytest.raises(DataError, match="between 1 and"):
        EpochOrder(0, 0)
