"""Nearest neighbours against brute force, where rounding hurts, and within bounded memory."""

import numpy as np
import pytest

from epg.evaluation import nearest as module
from epg.evaluation.nearest import nearest


def brute_force(queries: np.ndarray, points: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    distances = np.linalg.norm(queries[:, None].astype(np.float64) - points[None], axis=2)
    order = distances.argsort(1, kind="stable")[:, :k]
    return np.take_along_axis(distances, order, 1), order


@pytest.mark.parametrize("k", [1, 3, 40])
def test_agrees_with_brute_force_across_blocks(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUERIES", 7)
    rng = np.random.default_rng(0)
    queries, points = rng.normal(size=(20, 5)).astype(np.float32), rng.normal(size=(40, 5)).astype(np.float32)
    distances, indices = nearest(queries, points, k)
    expected_distances, expected_indices = brute_force(queries, points, k)
    np.testing.assert_array_equal(indices, expected_indices)
    np.testing.assert_allclose(distances, expected_distances, rtol=1e-12)


def test_copies_are_at_distance_zero_however_far_the_origin() -> None:
    """`|q|^2 + |p|^2 - 2 q p` in float32 has errors of about 10 here; the nearest other point is at 0.3."""
    rng = np.random.default_rng(1)
    points = (1e4 + rng.uniform(size=(500, 3))).astype(np.float32)
    distances, indices = nearest(points, points, 2)
    np.testing.assert_array_equal(indices[:, 0], np.arange(500))
    assert distances[:, 0].max() == 0
    np.testing.assert_allclose(distances, brute_force(points, points, 2)[0], rtol=1e-12)


def test_equal_points_come_in_their_order() -> None:
    points = np.zeros((4, 2), np.float32)
    _, indices = nearest(np.ones((1, 2), np.float32), points, 3)
    assert indices.tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("k", [0, 5])
def test_more_neighbours_than_points_are_refused(k: int) -> None:
    with pytest.raises(ValueError, match="between 1 and the 4 points"):
        nearest(np.zeros((1, 2)), np.zeros((4, 2)), k)
