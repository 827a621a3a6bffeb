"""Numbers from features: pure functions of arrays, computed in float64 on the CPU."""

from epg.evaluation.metrics.frechet import (
    Moments,
    MomentsAccumulator,
    frechet_between,
    frechet_distance,
    statistics,
)
from epg.evaluation.metrics.kernels import gaussian_mmd, kernel_inception_distance
from epg.evaluation.metrics.manifolds import (
    Manifold,
    density_coverage,
    precision_recall,
)
from epg.evaluation.metrics.score import inception_score

__all__ = [
    "Manifold",
    "Moments",
    "MomentsAccumulator",
    "density_coverage",
    "frechet_between",
    "frechet_distance",
    "gaussian_mmd",
    "inception_score",
    "kernel_inception_distance",
    "precision_recall",
    "statistics",
]
