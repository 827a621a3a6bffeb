"""Class-balanced order and parts of a data set."""

import numpy as np
import pytest

from epg.config.sections import DataConfig
from epg.data.configured import open_training_data, subset
from epg.data.dataset import CachedDataset, open_dataset
from epg.data.loading.loader import BatchLoader
from epg.data.order import BalancedOrder
from epg.errors import UserError

LABELS = np.repeat(np.arange(5), [1, 7, 100, 20, 3])


def test_every_block_of_positions_holds_every_class_once():
    order = BalancedOrder(np.random.default_rng(0).permutation(LABELS), seed=3)
    labels = np.random.default_rng(0).permutation(LABELS)
    drawn = labels[order.indices(np.arange(5 * 400))].reshape(400, 5)
    assert (np.sort(drawn, axis=1) == np.arange(5)).all()
    assert len({tuple(row) for row in drawn.tolist()}) > 50, "in another order each time"


def test_images_of_a_class_come_equally_often():
    order = BalancedOrder(LABELS, seed=0)
    counts = np.bincount(order.indices(np.arange(5 * 700)), minlength=len(LABELS))  # 700 is 7 x 100 = 35 x 20
    for label in range(5):
        members = counts[label == LABELS]
        assert members.sum() == 700
        assert members.max() - members.min() <= 1


def test_it_is_a_function_of_seed_and_position():
    order = BalancedOrder(LABELS, seed=1)
    whole = order.indices(np.arange(1000))
    parts = [order.indices(np.arange(start, start + 8)) for start in range(0, 1000, 8)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    np.testing.assert_array_equal(BalancedOrder(LABELS, 1).indices(np.arange(1000).reshape(10, 100)).ravel(), whole)
    assert (BalancedOrder(LABELS, 2).indices(np.arange(1000)) != whole).any()
    assert order.indices(np.array([10**15])) < len(LABELS)


def test_labels_may_have_gaps_or_be_none():
    assert set(BalancedOrder(np.array([5, 9, 9]), 0).indices(np.arange(100))) == {0, 1, 2}
    np.testing.assert_array_equal(np.sort(BalancedOrder(np.full(10, -1), 0).indices(np.arange(10))), np.arange(10))


@pytest.mark.parametrize("cached", [False, True])
def test_the_loader_follows_the_balanced_order(cached):
    dataset = subset(open_dataset("digits", image_size=8, channels=1), fraction=0.3)
    dataset = CachedDataset(dataset) if cached else dataset
    dataset.balanced = True
    streams = [
        iter(BatchLoader(dataset, batch_size=20, seed=0, rank=r, world_size=2, workers=w)) for r, w in ((0, 0), (1, 2))
    ]
    for _ in range(10):
        batches = [next(stream)[0] for stream in streams]
        labels = np.concatenate([batch.labels.numpy() for batch in batches])
        assert (np.bincount(labels, minlength=10) == 2).all()


def test_first_of_each_class():
    dataset = open_dataset("digits", image_size=8, channels=1)
    part = subset(dataset, per_class=3)
    assert np.bincount(part.labels).tolist() == [3] * 10
    for label in range(10):
        first = np.flatnonzero(dataset.labels == label)[:3]
        np.testing.assert_array_equal(part.indices[part.labels == label], first)
    i = 7
    assert (part[i][0] == dataset[int(part.indices[i])][0]).all()
    assert part.describe(i) == dataset.describe(int(part.indices[i]))
    assert len(subset(dataset, per_class=10_000)) == len(dataset)


def test_fractions_are_stratified_nested_and_repeatable():
    dataset = open_dataset("digits", image_size=8, channels=1)
    tenth, third = (set(subset(dataset, fraction=f).indices.tolist()) for f in (0.1, 0.33))
    assert tenth < third
    assert tenth == set(subset(dataset, fraction=0.1).indices.tolist())
    counts = np.bincount(subset(dataset, fraction=0.1).labels)
    assert np.abs(counts - 0.1 * np.bincount(dataset.labels)).max() <= 0.5
    assert np.bincount(subset(dataset, fraction=1e-6).labels).tolist() == [1] * 10
    assert np.bincount(subset(dataset, per_class=20, fraction=0.25).labels).tolist() == [5] * 10


def test_parts_have_fingerprints_of_their_own():
    dataset = open_dataset("digits", image_size=8, channels=1)
    prints = {subset(dataset, **o).fingerprint() for o in ({}, {"per_class": 3}, {"per_class": 4}, {"fraction": 0.1})}
    assert len(prints) == 4
    assert subset(dataset) is dataset


@pytest.mark.parametrize("options", [{"per_class": 0}, *({"fraction": value} for value in (0.0, 1.5, np.nan))])
def test_impossible_parts_are_refused(options):
    with pytest.raises(UserError, match=r"--data\."):
        subset(open_dataset("digits", image_size=8, channels=1), **options)


def test_the_configuration_reaches_training_data_but_not_test_data():
    config = DataConfig(image_size=8, channels=1, normalization="symmetric", per_class=2, balanced=True)
    train = open_training_data(config)
    assert len(train) == 20
    assert isinstance(train.order(0), BalancedOrder)
    assert len(open_training_data(config, "test")) > 300
