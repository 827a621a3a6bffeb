"""Losses: tensors in, one value per sample out. Computed in (at least) float32 whatever comes in."""

import torch
import torch.nn.functional as F
from torch import Tensor

from epg.distributed import all_gather, rank
from epg.networks.layers import full_precision


def nt_xent(queries: Tensor, targets: Tensor, temperature: Tensor | float) -> Tensor:
    """NT-Xent, eq. 7: cross-entropy of cosine similarities, the positive of query i is target i. (N, D) -> (N,).

    Targets of every process serve as negatives. They carry no gradient, which is why a plain gather is right.
    """
    with torch.autocast(queries.device.type, enabled=False):
        queries = F.normalize(full_precision(queries), dim=-1)
        targets = all_gather(F.normalize(full_precision(targets.detach()), dim=-1))  # (W N, D)
        logits = queries @ targets.T / temperature  # (N, W N)
        positives = torch.arange(len(queries), device=queries.device) + rank() * len(queries)
        return F.cross_entropy(logits, positives, reduction="none")


def x_prediction(denoised: Tensor, images: Tensor, weight: Tensor) -> Tensor:
    """Mean over pixels of `lambda (D - x)^2`. Denoised (..., N, C, H, W) and clean images, lambda (N,) -> (..., N)."""
    return weight * (denoised - images).square().flatten(-3).mean(-1)


def consistency(online: Tensor, target: Tensor, weight: Tensor, c: float = 0.06) -> Tensor:
    """Distance of easy consistency tuning (ECT), `w d / sqrt(stopgrad(d) + c^2)`, whose gradient is twice
    that of the pseudo-Huber distance `sqrt(d + c^2)`; d is the squared distance summed over pixels.

    Online prediction at t and target at r < t (N, C, H, W), weight w = 1 / (t - r) (N,) -> (N,).
    """
    d = (online - target).square().flatten(1).sum(1)
    return weight * d * (d.detach() + c**2).rsqrt()
