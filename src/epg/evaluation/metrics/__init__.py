"""Numbers from features: pure functions of arrays, computed in float64 on the CPU."""

from epg.evaluation.metrics.frechet import (
    Moments,
    MomentsAccumulator,
    frechet_between,
    frechet_distance,
    merged,
    statistics,
)
from epg.evaluation.metrics.kernels import SUBSET_SIZE, gaussian_mmd, kernel_inception_distance
from epg.evaluation.metrics.manifolds import (
    Manifold,
    density_coverage,
    precision_recall,
)
from epg.evaluation.metrics.score import SPLIT, inception_score

__all__ = [
    "SPLIT",
    "SUBSET_SIZE",
    "Manifold",
    "Moments",
    "MomentsAccumulator",
    "density_coverage",
    "frechet_between",
    "frechet_distance",
    "gaussian_mmd",
    "inception_score",
    "kernel_inception_distance",
    "merged",
    "precision_recall",
    "statistics",
]
