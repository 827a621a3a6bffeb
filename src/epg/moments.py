"""Matching the moments of features: the Frechet distance between a fixed Gaussian and a running one, as a loss.

Yang et al., "Representation Frechet Loss for Visual Generation" (arXiv 2604.28190).
"""

from typing import Any

import torch
from torch import Tensor, nn

from epg.distributed import all_reduce_sum

SUPPORT = 1e-8  # eigenvalues below this part of the largest are those of directions in which nothing varies


class Moments(nn.Module):
    """Mean and second moment of D features of generated images, kept while training, and those of real images.

    Features are measured from the mean of the real ones, in units of `scale`, so that nothing is lost to cancellation.
    All numbers are buffers: they are part of a checkpoint.

    Args:
        size: the number of features, D.
        decay: b of `m <- b m + (1 - b) mean(phi)`.
    """

    centre: Tensor
    scale: Tensor
    root: Tensor
    mean: Tensor
    second: Tensor

    def __init__(self, size: int, decay: float) -> None:
        super().__init__()
        self.size, self.decay = size, decay
        self.register_buffer("centre", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))
        self.register_buffer("root", torch.eye(size))  # R, the symmetric root of the covariance of the real images
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("second", torch.eye(size))

    def set_reference(self, mean: Tensor, covariance: Tensor, scale: Tensor) -> None:
        """The moments of real images, (D,) and (D, D), and the unit of every feature (D,); float64."""
        self.centre.copy_(mean)
        self.scale.copy_(scale)
        self.root.copy_(symmetric_root(covariance / (scale[:, None] * scale)))

    def in_units(self, features: Tensor) -> Tensor:
        """Features (N, D) as they are compared."""
        return (features - self.centre) / self.scale

    def start(self, mean: Tensor, second: Tensor) -> None:
        """The first running moments, from those of plain features, (D,) and (D, D); float64."""
        centre, scale = self.centre.double(), self.scale.double()
        moved = mean - centre
        crossed = torch.outer(mean, centre)
        self.mean.copy_(moved / scale)
        self.second.copy_((second - crossed - crossed.T + torch.outer(centre, centre)) / torch.outer(scale, scale))

    def forward(self, features: Tensor, which: Tensor) -> Tensor:
        """The distance of the running moments, after they took in features (N, D) of this and all other processes.

        Its value is that of the running moments; its gradient is that of the distance by the moments of this batch
        alone, as if they were all: so it does not shrink with 1 - b.

        Args:
            which: 1 for every sample that counts, else 0, (N,). Where there is none nothing changes.
        """
        with torch.autocast(features.device.type, enabled=False):  # moments are sums of many numbers
            x = self.in_units(features.to(self.mean))
            chosen = which[:, None] * x
            found = all_reduce_sum(which.sum())
            count, rate = found.clamp(min=1), (1 - self.decay) * (found > 0)
            mean, second = all_reduce_sum(chosen.sum(0)) / count, all_reduce_sum(chosen.T @ x) / count
        with torch.no_grad():
            self.mean.lerp_(mean, rate)
            self.second.lerp_(second, rate)
        return self.distance(through(self.mean, mean), through(self.second, second))

    def distance(self, mean: Tensor, second: Tensor) -> Tensor:
        """`|m|^2 + tr S + tr S_r - 2 tr (R S R)^(1/2)` with `S = M - m m^T`, in float64."""
        mean, second, root = mean.double(), second.double(), self.root.double()
        covariance = second - torch.outer(mean, mean)
        between = _TraceOfRoot.apply(covariance, root)
        return mean.square().sum() + covariance.trace() + root.square().sum() - 2 * between


def through(value: Tensor, gradient: Tensor) -> Tensor:
    """One tensor's numbers with the gradient of another."""
    return value.detach().clone() + (gradient - gradient.detach())


def symmetric_root(covariance: Tensor) -> Tensor:
    """R with R R = S for a symmetric S (D, D); directions that are negative by rounding count as 0."""
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


class _TraceOfRoot(torch.autograd.Function):
    """`tr (R S R)^(1/2)`; its gradient by S is `R (R S R)^(-1/2) R / 2` where anything varies, and 0 elsewhere.

    Written out, as that of `eigh` divides by the differences of eigenvalues.
    """

    @staticmethod
    def forward(ctx: Any, covariance: Tensor, root: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(root @ covariance @ root)
        inverse = torch.where(
            values > SUPPORT * values[-1], values.clamp(min=torch.finfo(values.dtype).tiny).rsqrt(), 0
        )
        across = root @ vectors
        ctx.save_for_backward((across * inverse) @ across.T / 2)
        return values.clamp(min=0).sqrt().sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return grads[0] * gradient, None


class Sums:
    """Count, sum and products of features (N, D) of many batches, in float64, over all processes in the end."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.count = torch.zeros((), dtype=torch.float64, device=device)
        self.total = torch.zeros(size, dtype=torch.float64, device=device)
        self.products = torch.zeros(size, size, dtype=torch.float64, device=device)

    def add(self, features: Tensor, weights: Tensor) -> None:
        """Features (N, D), each as often as its weight (N,) says."""
        x = features.double()
        weighted = weights.double()[:, None] * x
        self.count += weights.double().sum()
        self.total += weighted.sum(0)
        self.products += weighted.T @ x

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean (D,) and second moment (D, D); all processes call it together."""
        count, total, products = (all_reduce_sum(x) for x in (self.count, self.total, self.products))
        return total / count, products / count
