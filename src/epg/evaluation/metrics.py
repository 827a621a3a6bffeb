"""Numbers from features: pure functions in float64."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def statistics(features: NDArray[np.floating]) -> tuple[Array, Array]:
    """Mean (D,) and covariance (D, D) of features (N, D), N >= 2."""
    features = features.astype(np.float64)
    return features.mean(0), np.cov(features, rowvar=False).reshape(features.shape[1], -1)


def frechet_distance(mean1: Array, cov1: Array, mean2: Array, cov2: Array) -> float:
    """`|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))` between two Gaussians.

    The trace of the root is the sum of the roots of the eigenvalues of C1^(1/2) C2 C1^(1/2), which is symmetric and
    positive, so that singular covariances (few samples) need no special case.
    """
    root1 = symmetric_root(cov1)
    eigenvalues = np.linalg.eigvalsh(root1 @ cov2 @ root1)
    trace_root = np.sqrt(np.clip(eigenvalues, 0, None)).sum()
    distance = np.square(mean1 - mean2).sum() + np.trace(cov1) + np.trace(cov2) - 2 * trace_root
    return float(max(distance, 0.0))


def symmetric_root(matrix: Array) -> Array:
    """Square root of a symmetric positive semi-definite matrix."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T


def frechet_between(features1: NDArray[np.floating], features2: NDArray[np.floating]) -> float:
    """Frechet distance between two sets of features (N, D)."""
    return frechet_distance(*statistics(features1), *statistics(features2))
