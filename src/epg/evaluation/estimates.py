"""What the metrics of `measures` compute from the outputs of an extractor, with standard errors."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from epg.errors import DataError
from epg.evaluation import FEATURES, LOGITS, SPATIAL
from epg.evaluation.extractors.extractor import Extractor
from epg.evaluation.metrics import kernels, manifolds, score, uncertainty
from epg.evaluation.metrics.accuracy import recognised
from epg.evaluation.metrics.manifolds import Manifold
from epg.evaluation.metrics.uncertainty import JACKKNIFE, jackknife
from epg.evaluation.receipt import ClassAccuracy
from epg.evaluation.reference import Statistics, manifold_of
from epg.randomness import permutation


class Estimate(NamedTuple):
    """A value, its standard error from the finite number of samples, and how that was estimated."""

    value: float
    error: float | None
    error_from: str
    classes: Sequence[ClassAccuracy] = ()
    """The same, class by class, where there is such a thing."""


@dataclass(frozen=True)
class Evidence:
    """What one extractor says of the samples, and what it is compared with."""

    extractor: Extractor
    outputs: dict[str, NDArray[np.float32]]
    """By output, (N, D) of the samples."""
    reference: Statistics
    labels: NDArray[np.int64] | None = None
    """(N,) in the extractor's classes, for metrics that need them."""
    held_out: NDArray[np.float32] | None = None
    """Features of real images that the reference does not contain, for metrics that need them."""
    seed: int = 0

    @property
    def features(self) -> NDArray[np.float32]:
        return self.outputs[FEATURES]

    @property
    def reference_features(self) -> NDArray[np.float32]:
        assert self.reference.features is not None
        return self.reference.features

    @cached_property
    def manifold(self) -> Manifold:
        return manifold_of(self.features)


def frechet(e: Evidence) -> Sequence[Estimate]:
    value, error = uncertainty.frechet(e.features, e.reference.moments[FEATURES])
    return [Estimate(value, error, JACKKNIFE)]


def spatial_frechet(e: Evidence) -> Sequence[Estimate]:
    value, error = uncertainty.frechet(e.outputs[SPATIAL], e.reference.moments[SPATIAL])
    return [Estimate(value, error, JACKKNIFE)]


def frechet_ratio(e: Evidence) -> Sequence[Estimate]:
    """Of equally many samples and held-out images. Raises DataError for held-out images that are the reference's."""
    assert e.held_out is not None
    count, reference = min(len(e.features), len(e.held_out)), e.reference.moments[FEATURES]
    of_samples, of_real = (uncertainty.frechet(some(rows, count), reference) for rows in (e.features, e.held_out))
    (value, error), (real, real_error) = of_samples, of_real
    if real <= 0:
        raise DataError("--metrics fdr: the held-out images are those of the reference; their distance is 0")
    told = f"{JACKKNIFE}, and of {count} held-out images"
    if error is None or real_error is None:
        return [Estimate(value / real, None, told)]
    return [Estimate(value / real, math.hypot(error, value / real * real_error) / real, told)]


def some(rows: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """`count` rows, chosen at random but always the same."""
    return rows[np.sort(permutation(len(rows), 0, "some samples")[:count])] if count < len(rows) else rows


def inception_score(e: Evidence) -> Sequence[Estimate]:
    logits = e.outputs[LOGITS]
    found = score.inception_score(logits)
    splits = len(found.splits)
    if splits > 1:
        error = float(np.std(found.splits, ddof=1) / splits**0.5)
        return [Estimate(found.value, error, f"spread of {splits} splits of {score.SPLIT}")]
    error_of_one = jackknife(lambda i: score.inception_score(logits[i]).value, len(logits))
    return [Estimate(found.value, error_of_one, JACKKNIFE)]


def precision_recall(e: Evidence) -> Sequence[Estimate]:
    found = manifolds.precision_recall(e.reference.manifold, e.manifold)
    return [share(found.precision, len(e.manifold)), share(found.recall, len(e.reference.manifold))]


def density_coverage(e: Evidence) -> Sequence[Estimate]:
    found = manifolds.density_coverage(e.reference.manifold, e.manifold)
    density = Estimate(found.density, found.density_error, "spread over the samples")
    return [density, share(found.coverage, len(e.reference.manifold))]


def kernel_distance(e: Evidence) -> Sequence[Estimate]:
    found = kernels.kernel_inception_distance(e.reference_features, e.features, seed=e.seed)
    size = min(kernels.SUBSET_SIZE, len(e.reference_features), len(e.features))
    disjoint = max(1, min(len(found.subsets), len(e.features) // size))
    error = float(np.std(found.subsets, ddof=1) / disjoint**0.5)
    return [
        Estimate(found.value, error, f"spread of {len(found.subsets)} subsets of {size}, {disjoint} of them disjoint")
    ]


def gaussian_mmd(e: Evidence) -> Sequence[Estimate]:
    samples, real = e.features, e.reference_features
    error = jackknife(lambda i: kernels.gaussian_mmd(real, samples[i]), len(samples))
    return [Estimate(kernels.gaussian_mmd(real, samples), error, JACKKNIFE)]


def accuracy(e: Evidence) -> Sequence[Estimate]:
    assert e.labels is not None
    value, classes = recognised(e.outputs[LOGITS], e.labels, e.extractor.class_names)
    return [share(value, len(e.labels))._replace(classes=classes)]


def share(value: float, count: int) -> Estimate:
    """A share of `count` things that are or are not so."""
    return Estimate(value, (value * (1 - value) / count) ** 0.5, "binomial")
