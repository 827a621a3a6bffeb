"""Nearest neighbours by brute force: exact, and bounded in memory whatever the number of points."""

import numpy as np
from numpy.typing import NDArray

from epg.evaluation.metrics.finite import refuse_nonfinite

QUERIES = 1024  # at a time
SPARE = 4  # candidates beyond the k asked for: the fast distances are rounded, and rounding changes the order


def nearest(
    queries: NDArray[np.floating], points: NDArray[np.floating], k: int = 1
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Euclidean distances (N, k), rising, and indices (N, k) of the k points (M, D) nearest to each query (N, D).

    scikit-learn's candidates come from `|p|^2 - 2 q p`, which loses small distances to rounding; those of the
    candidates are then computed from the differences, so that an exact copy is at distance 0. Equal distances come in
    the order of the points. Raises ValueError unless 1 <= k <= M, and where a value is not finite.
    """
    from sklearn.neighbors import NearestNeighbors  # slow to import, and much imports this module

    if not 1 <= k <= len(points):
        raise ValueError(f"k = {k}: must be between 1 and the {len(points)} points")
    refuse_nonfinite(queries)
    refuse_nonfinite(points)
    centre = points.mean(0, dtype=np.float64)  # rounding is relative to the distance from the origin
    search = NearestNeighbors(n_neighbors=min(k + SPARE, len(points)), algorithm="brute")
    search.fit((points - centre).astype(np.float32))
    distances, indices = np.empty((len(queries), k)), np.empty((len(queries), k), np.int64)
    for start in range(0, len(queries), QUERIES):
        block = queries[start : start + QUERIES].astype(np.float64)
        candidates = np.sort(search.kneighbors((block - centre).astype(np.float32), return_distance=False), 1)
        exact = np.stack([np.linalg.norm(block - points[column], axis=1) for column in candidates.T], 1)
        order = exact.argsort(1, kind="stable")[:, :k]
        part = slice(start, start + len(block))
        distances[part], indices[part] = (np.take_along_axis(found, order, 1) for found in (exact, candidates))
    return distances, indices
