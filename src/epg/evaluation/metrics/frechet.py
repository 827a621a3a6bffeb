"""Mean and covariance of features, and the Frechet distance between two Gaussians (Heusel et al. 2017, eq. 6)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from epg.evaluation.metrics.finite import finite

Array = NDArray[np.float64]

TOLERANCE = 1e-6  # of a distance, within which rounding may put it
SURE = 1000  # times its rounding, which an eigenvalue must be at least
BLOCK = 1024  # rows that are added up at once: fixed, so that the sum does not depend on how the rows arrive


@dataclass(frozen=True)
class Moments:
    """Mean (D,) and unbiased covariance (D, D) of `count` features."""

    count: int
    mean: Array
    covariance: Array
    root: Array | None = None
    """(D, R) with `root root^T` the covariance, where it is known from few features."""

    @cached_property
    def factor(self) -> Array:
        """F (D, R) with `F F^T` the covariance, R at least its numerical rank."""
        if self.root is not None:
            return self.root
        tensor = torch.from_numpy(np.ascontiguousarray(self.covariance, dtype=np.float64))
        values, vectors = (t.numpy() for t in torch.linalg.eigh(tensor))  # ascending
        kept = values > len(values) * np.finfo(np.float64).eps * max(values[-1], 0.0)
        return vectors[:, kept] * np.sqrt(values[kept])

    @cached_property
    def cholesky(self) -> torch.Tensor | None:
        """Lower triangular L (D, D) with `L L^T` the covariance; None where that is singular."""
        factor, failed = torch.linalg.cholesky_ex(torch.from_numpy(np.ascontiguousarray(self.covariance)))
        return None if failed else factor


class MomentsAccumulator:
    """Mean and covariance of features that arrive in parts of any size.

    The rows are added in blocks of 1024 whatever the parts were, each block centred at its own mean before it is
    merged (Chan et al. 1979), so that no digits are lost to a large mean.
    """

    def __init__(self) -> None:
        self.count = 0
        self._waiting: list[NDArray[np.floating]] = []
        self._rows = 0
        self._mean: Array = np.zeros(0)
        self._scatter: Array = np.zeros((0, 0))  # sum of (x - mean)(x - mean)^T

    def add(self, features: NDArray[np.floating]) -> None:
        """Takes rows (N, D), N >= 0."""
        self._waiting.append(features)
        self._rows += len(features)
        while self._rows >= BLOCK:
            rows = np.concatenate(self._waiting)
            self._merge(rows[:BLOCK])
            self._waiting, self._rows = [rows[BLOCK:]], len(rows) - BLOCK

    def moments(self) -> Moments:
        """Of everything added. Raises ValueError for fewer than two rows."""
        if self._rows:
            self._merge(np.concatenate(self._waiting))
            self._waiting, self._rows = [], 0
        if self.count < 2:
            raise ValueError("the covariance needs at least two images")
        return Moments(self.count, self._mean, self._scatter / (self.count - 1))

    def _merge(self, rows: NDArray[np.floating]) -> None:
        block = finite(rows)
        mean = block.mean(0)
        block -= mean
        scatter = (torch.from_numpy(block).T @ torch.from_numpy(block)).numpy()
        if self.count == 0:
            self.count, self._mean, self._scatter = len(rows), mean, scatter
            return
        total = self.count + len(rows)
        shift = mean - self._mean
        self._scatter += scatter
        self._scatter += np.outer(shift, shift * (self.count * len(rows) / total))
        self._mean = self._mean + shift * (len(rows) / total)
        self.count = total


def statistics(features: NDArray[np.floating]) -> Moments:
    """Mean and covariance of features (N, D), N >= 2. Raises ValueError for fewer, and where one is not finite."""
    count, width = features.shape
    if 2 <= count <= width:  # the centred features are a root of their covariance, to the last digit
        rows = finite(features)
        mean = rows.mean(0)
        root = ((rows - mean) / np.sqrt(count - 1)).T
        return Moments(count, mean, root @ root.T, root)
    accumulator = MomentsAccumulator()
    for start in range(0, count, BLOCK):
        accumulator.add(features[start : start + BLOCK])
    return accumulator.moments()


def merged(parts: Sequence[Moments]) -> Moments:
    """Moments of several sets together (Chan et al. 1979)."""
    count = sum(part.count for part in parts)
    mean: Array = np.sum([part.mean * (part.count / count) for part in parts], axis=0)
    scatter = np.zeros_like(parts[0].covariance)
    columns = []
    for part in parts:
        shift = part.mean - mean
        scatter += part.covariance * (part.count - 1)
        scatter += np.outer(shift, shift * part.count)
        if part.root is not None:
            columns += [part.root * np.sqrt(part.count - 1), shift[:, None] * np.sqrt(part.count)]
    known = all(part.root is not None for part in parts) and count + len(parts) <= len(mean)
    root = np.concatenate(columns, 1) / np.sqrt(count - 1) if known else None
    return Moments(count, mean, scatter / (count - 1), root)


def frechet_distance(a: Moments, b: Moments) -> float:
    """`|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))` between two Gaussians, to 1e-6 relative or better.

    With `C = F F^T`, the trace of the root is the sum of the singular values of `F1^T F2` (exact, also for singular
    covariances), and of the roots of the eigenvalues of `F2^T C1 F2`: five times faster, as F2 may be a Cholesky
    factor, but a root turns a rounding error of 1e-16 in a vanishing eigenvalue into 1e-8. So the fast way comes first,
    with a bound of what rounding has done; where that is too much, or there is no Cholesky factor, the exact one.
    Raises ValueError for features of different width, and for moments that are not finite.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features of width {len(a.mean)} cannot be compared with features of width {len(b.mean)}")
    if not all(np.isfinite(part).all() for m in (a, b) for part in (m.mean, m.covariance)):
        raise ValueError("a mean or covariance is not finite")
    apart = float(np.square(a.mean - b.mean).sum() + np.trace(a.covariance) + np.trace(b.covariance))
    trace_root, doubt = _by_eigenvalues(a, b) if a.root is None else _by_eigenvalues(b, a)
    if 2 * doubt > TOLERANCE * (apart - 2 * trace_root):
        trace_root = _by_singular_values(a, b)
    return max(apart - 2 * trace_root, 0.0)


def _by_eigenvalues(a: Moments, b: Moments) -> tuple[float, float]:
    """tr (C1 C2)^(1/2) from a triangular (or known) root of C2, and how far off rounding may have put it."""
    factor = b.cholesky if b.root is None else torch.from_numpy(b.root)
    if factor is None:
        return 0.0, np.inf
    values = torch.linalg.eigvalsh(factor.T @ torch.from_numpy(a.covariance) @ factor)  # ascending
    if b.root is not None:
        values = values[max(0, len(values) - (b.count - 1)) :]  # centred features: the others are 0 but for rounding
    rounding = 4 * np.finfo(np.float64).eps * np.linalg.norm(a.covariance) * np.linalg.norm(b.covariance)
    if values[0] < SURE * rounding:
        return 0.0, np.inf
    roots = values.sqrt()
    return float(roots.sum()), float((rounding / (2 * roots)).sum())


def _by_singular_values(a: Moments, b: Moments) -> float:
    """tr (C1 C2)^(1/2) to rounding, whatever the rank of the covariances."""
    product = torch.from_numpy(a.factor.T @ b.factor)
    return float(torch.linalg.svdvals(product).sum()) if product.numel() else 0.0


def frechet_between(features1: NDArray[np.floating], features2: NDArray[np.floating]) -> float:
    """Frechet distance between two sets of features (N, D)."""
    return frechet_distance(statistics(features1), statistics(features2))
