"""Precision and recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020).

Both call the union of balls around the features of a set its manifold; the radius of a ball reaches to the k-th
nearest other feature of the set. Distances are squared and in float64 throughout, in blocks: ADM's evaluator computes
them in float16 where nothing overflows, which blurs the decision `distance <= radius` by about 1e-3.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from epg.evaluation.metrics.finite import finite

BLOCK = 2048
# Rounding of a squared distance, as a share of the squared norms; some ten times what is observed.
ROUNDING = 1e-13


class Manifold:
    """Features (N, D) and the squared distances to the `k` nearest others of each.

    Raises ValueError for too few, and for features that are not finite.
    """

    def __init__(self, features: NDArray[np.floating], k: int = 3) -> None:
        if len(features) <= k:
            raise ValueError(f"{len(features)} images have no {k} nearest neighbours; more than {k} are needed")
        self.features = torch.from_numpy(finite(features))
        self.norms = self.features.square().sum(1)
        self.neighbours = self._nearest(k)  # (N, k) ascending

    def __len__(self) -> int:
        return len(self.features)

    def radii(self, k: int, closed: bool = True) -> Tensor:
        """Squared distance (N,) of each feature to its k-th nearest other one, to compare squared distances with.

        Moved by the rounding of the distances, up for closed balls (`<=`) and down for open ones (`<`): so copies of
        an image are inside a closed ball of radius 0, and outside an open one, whatever the rounding.
        """
        return self.neighbours[:, k - 1] + (1 if closed else -1) * 2 * ROUNDING * self.norms

    def _nearest(self, k: int) -> Tensor:
        """Each pair of blocks is computed once, for the rows of both."""
        count = len(self.features)
        best = torch.full((count, k), torch.inf, dtype=torch.float64)

        def keep(rows: slice, found: Tensor) -> None:
            best[rows] = torch.cat([best[rows], found], 1).topk(k, largest=False).values

        for i in range(0, count, BLOCK):
            for j in range(i, count, BLOCK):
                rows, columns = slice(i, i + BLOCK), slice(j, j + BLOCK)
                distances = squared_distances(self, rows, self, columns)
                if i == j:
                    distances.fill_diagonal_(torch.inf)  # a feature is not its own neighbour
                height, width = distances.shape
                keep(rows, distances.topk(min(k, width), 1, largest=False, sorted=False).values)
                if i != j:
                    keep(columns, distances.topk(min(k, height), 0, largest=False, sorted=False).values.T)
        return best


def squared_distances(a: Manifold, rows: slice, b: Manifold, columns: slice) -> Tensor:
    """float64 (rows, columns) between the features of two sets."""
    distances = torch.addmm(b.norms[columns], a.features[rows], b.features[columns].T, alpha=-2)
    return distances.add_(a.norms[rows, None])


@dataclass(frozen=True)
class PrecisionRecall:
    precision: float
    """Share of samples inside the manifold of the reference: quality."""
    recall: float
    """Share of the reference inside the manifold of the samples: variety."""


def precision_recall(reference: Manifold, samples: Manifold, k: int = 3) -> PrecisionRecall:
    """ADM's precision and recall: inside means `distance <= radius` for at least one ball."""
    radii_r, radii_s = reference.radii(k), samples.radii(k)
    reference_inside = torch.zeros(len(reference), dtype=torch.bool)
    samples_inside = torch.zeros(len(samples), dtype=torch.bool)
    for i in range(0, len(reference), BLOCK):
        for j in range(0, len(samples), BLOCK):
            rows, columns = slice(i, i + BLOCK), slice(j, j + BLOCK)
            distances = squared_distances(reference, rows, samples, columns)
            samples_inside[columns] |= (distances <= radii_r[rows, None]).any(0)
            reference_inside[rows] |= (distances <= radii_s[columns]).any(1)
    return PrecisionRecall(float(samples_inside.double().mean()), float(reference_inside.double().mean()))


@dataclass(frozen=True)
class DensityCoverage:
    density: float
    """How many balls of the reference a sample lies in, on average, over k: about 1 for real images, may exceed 1."""
    coverage: float
    """Share of the reference that has a sample inside its ball."""
    density_error: float
    """Standard error of the density over the samples."""


def density_coverage(reference: Manifold, samples: Manifold, k: int = 5) -> DensityCoverage:
    """As the authors define them: inside means `distance < radius`, and only the reference has balls."""
    radii = reference.radii(k, closed=False)
    inside = torch.zeros(len(samples), dtype=torch.float64)  # in how many balls each sample is
    covered = torch.zeros(len(reference), dtype=torch.bool)
    for i in range(0, len(reference), BLOCK):
        for j in range(0, len(samples), BLOCK):
            rows, columns = slice(i, i + BLOCK), slice(j, j + BLOCK)
            within = squared_distances(reference, rows, samples, columns) < radii[rows, None]
            inside[columns] += within.sum(0)
            covered[rows] |= within.any(1)
    density = inside / k
    error = float(density.std() / len(samples) ** 0.5)
    return DensityCoverage(float(density.mean()), float(covered.double().mean()), error)
