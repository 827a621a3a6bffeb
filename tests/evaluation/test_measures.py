"""Errors of metrics: what they should be, whatever the order in which samples come."""

import numpy as np
import pytest

from epg.evaluation.measures import GROUPS, frechet, groups_of, jackknife
from epg.evaluation.metrics import statistics


def test_groups_share_out_all_samples_and_no_period() -> None:
    groups = groups_of(103)
    assert sorted(np.concatenate(groups).tolist()) == list(range(103))
    assert {len(group) for group in groups} == {20, 21}
    assert all(len(set((group % GROUPS).tolist())) == GROUPS for group in groups)


def test_the_error_of_a_mean_is_that_of_the_mean() -> None:
    values = np.random.default_rng(0).normal(size=5000)
    errors = [jackknife(lambda i, v=v: float(v[i].mean()), len(v)) for v in values.reshape(10, 500)]  # type: ignore[misc]
    assert np.mean(np.square([e for e in errors if e is not None])) == pytest.approx(1 / 500, rel=0.5)


def test_classes_in_turn_do_not_inflate_the_error() -> None:
    """Groups of every fifth sample would hold two of ten classes each: an error ten times as large."""
    rng = np.random.default_rng(0)
    classes = np.arange(1000) % 10
    features = (rng.normal(size=(10, 6))[classes] * 5 + rng.normal(size=(1000, 6))).astype(np.float32)
    reference = statistics((rng.normal(size=(10, 6))[classes] * 5 + rng.normal(size=(1000, 6))).astype(np.float32))
    in_turn, shuffled = (frechet(f, reference) for f in (features, features[rng.permutation(1000)]))
    assert in_turn[0] == pytest.approx(shuffled[0], rel=1e-6)
    assert in_turn[1] is not None
    assert shuffled[1] is not None
    assert in_turn[1] == pytest.approx(shuffled[1], rel=1)
