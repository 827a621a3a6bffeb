"""Distances of kernel means: KID (Binkowski et al. 2018) and the Gaussian one of CMMD (Jayasumana et al. 2024)."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from epg.evaluation.metrics.finite import finite, refuse_nonfinite
from epg.randomness import permutation

BLOCK = 4096
SUBSETS, SUBSET_SIZE = 100, 1000  # as in torch-fidelity and most papers


@dataclass(frozen=True)
class KernelDistance:
    """Mean over the subsets, and the value of each."""

    value: float
    subsets: tuple[float, ...]


def kernel_inception_distance(
    reference: NDArray[np.floating],
    samples: NDArray[np.floating],
    *,
    subsets: int = SUBSETS,
    subset_size: int = SUBSET_SIZE,
    seed: int = 0,
) -> KernelDistance:
    """Unbiased squared MMD with the kernel `(x.y / D + 1)^3`, averaged over random subsets of features (N, D).

    The subsets are drawn without replacement, keyed by (seed, side, subset); fewer images than `subset_size` make
    smaller ones. Raises ValueError for fewer than two images, and for features that are not finite.
    """
    for features in (reference, samples):
        refuse_nonfinite(features)
    size = min(subset_size, len(reference), len(samples))
    if size < 2:
        raise ValueError("KID needs at least two images on each side")
    values = []
    for subset in range(subsets):
        x, y = (
            torch.from_numpy(f[permutation(len(f), seed, "kid", side, subset)[:size]].astype(np.float64))
            for side, f in (("reference", reference), ("samples", samples))
        )
        values.append(_unbiased_mmd(x, y))
    return KernelDistance(float(np.mean(values)), tuple(values))


def _unbiased_mmd(x: Tensor, y: Tensor) -> float:
    """Between float64 (N, D) and (N, D); the diagonal of each set with itself is left out."""

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        inner = (a @ b.T).div_(a.shape[1]).add_(1)
        return inner * inner * inner  # a third of the time of a power

    n = len(x)
    within = sum(float(k.sum() - k.diagonal().sum()) for k in (kernel(x, x), kernel(y, y)))
    return within / (n * (n - 1)) - 2 * float(kernel(x, y).mean())


def gaussian_mmd(
    reference: NDArray[np.floating], samples: NDArray[np.floating], *, sigma: float = 10.0, scale: float = 1000.0
) -> float:
    """`scale * MMD^2` with the kernel `exp(-|x - y|^2 / (2 sigma^2))`: CMMD when the features are CLIP's.

    The biased estimate (each set with itself includes its diagonal), on the features as they are: CMMD normalises
    CLIP's embeddings to length 1 before.
    """
    x, y = (torch.from_numpy(finite(f)) for f in (reference, samples))

    def mean_kernel(a: Tensor, b: Tensor) -> float:
        total = 0.0
        for block in a.split(BLOCK):
            for other in b.split(BLOCK):
                distance = block.square().sum(1)[:, None] + other.square().sum(1) - 2 * block @ other.T
                total += float(torch.exp(distance.clamp_(min=0) / (-2 * sigma**2)).sum())
        return total / (len(a) * len(b))

    return scale * (mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y))
