"""Nearest neighbours by brute force, in blocks: exact, and bounded in memory whatever the number of points."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from epg.evaluation.metrics.finite import refuse_nonfinite

QUERY_BLOCK, POINT_BLOCK = 1024, 8192  # 32 MiB of distances at a time
SPARE = 4  # candidates beyond the k asked for: the fast distances are rounded, and rounding changes the order


def nearest(
    queries: NDArray[np.floating], points: NDArray[np.floating], k: int = 1
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Euclidean distances (N, k), rising, and indices (N, k) of the k points (M, D) nearest to each query (N, D).

    Candidates come from `|p|^2 - 2 q p` in float32, which loses the small distances to rounding; those of the
    candidates are then computed from the differences in float64, so that an exact copy is at distance 0. Equal
    distances come in the order of the points. Raises ValueError unless 1 <= k <= M, and where a value is not
    finite.
    """
    if not 1 <= k <= len(points):
        raise ValueError(f"k = {k}: must be between 1 and the {len(points)} points")
    refuse_nonfinite(queries)
    refuse_nonfinite(points)
    centre = points.mean(0, dtype=np.float64)  # rounding is relative to the distance from the origin
    centred = torch.from_numpy((points - centre).astype(np.float32))
    half_norms = centred.square().sum(1) / 2
    distances, indices = np.empty((len(queries), k)), np.empty((len(queries), k), np.int64)
    for start in range(0, len(queries), QUERY_BLOCK):
        block = queries[start : start + QUERY_BLOCK]
        found = _candidates(torch.from_numpy((block - centre).astype(np.float32)), centred, half_norms, k + SPARE)
        part = slice(start, start + len(block))
        distances[part], indices[part] = _exact(block, points, found.sort(1).values.numpy(), k)
    return distances, indices


def _candidates(queries: Tensor, points: Tensor, half_norms: Tensor, count: int) -> Tensor:
    """Indices (N, at most `count`) of the points with the smallest `|p|^2 / 2 - q p`."""
    best = queries.new_empty(len(queries), 0)
    indices = torch.empty(len(queries), 0, dtype=torch.long)
    for start in range(0, len(points), POINT_BLOCK):
        block = slice(start, start + POINT_BLOCK)
        near = torch.addmm(half_norms[block], queries, points[block].T, alpha=-1)  # (N, block)
        values, places = near.topk(min(count, near.shape[1]), largest=False)
        best, indices = torch.cat([best, values], 1), torch.cat([indices, places + start], 1)
        best, order = best.topk(min(count, best.shape[1]), largest=False)
        indices = indices.gather(1, order)
    return indices


def _exact(
    queries: NDArray[np.floating], points: NDArray[np.floating], candidates: NDArray[np.int64], k: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The k nearest of each query's candidates (N, C), which are in the order of the points."""
    squares = np.empty(candidates.shape)
    for column in range(candidates.shape[1]):
        difference = queries.astype(np.float64) - points[candidates[:, column]]
        squares[:, column] = np.einsum("nd,nd->n", difference, difference)
    order = squares.argsort(1, kind="stable")[:, :k]
    return np.sqrt(np.take_along_axis(squares, order, 1)), np.take_along_axis(candidates, order, 1)
