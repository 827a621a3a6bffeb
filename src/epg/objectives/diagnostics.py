"""What training shows beside its losses: the loss by noise level, and the collapse gauge of appendix E."""

import torch
import torch.nn.functional as F
from torch import Tensor

from epg.distributed import all_reduce_sum, world_size
from epg.networks.layers import full_precision

SHARE = "/share"
QUARTILES = (-0.6744897501960817, 0.0, 0.6744897501960817)  # of the standard normal distribution


def quarter(unit_normal: Tensor) -> Tensor:
    """Which of four equally likely parts of the standard normal distribution: 0 (lowest) to 3. (N,) -> (N,) int64.

    A lognormal level rises with the normal number it is made of, so these are the quarters of the levels too.
    """
    return torch.stack([unit_normal > q for q in QUARTILES]).sum(0)


def by_quarter(name: str, values: Tensor, quarters: Tensor) -> dict[str, Tensor]:
    """Per-sample values (N,) by quarter (N,): scalars `name/q1` to `name/q4`, each with its `/share`.

    `name/q1` is the sum over quarter 1 divided by N, `name/q1/share` the number of samples in it divided by N. Both
    are means over the batch, so they average over micro-batches, steps and processes like any loss term, and the
    ratio of the averages is the exact mean of the quarter, however unevenly the samples fell.
    """
    inside = quarters[:, None] == torch.arange(4, device=quarters.device)  # (N, 4)
    sums = torch.where(inside, values.detach()[:, None], 0.0).mean(0)
    shares = inside.to(sums.dtype).mean(0)
    terms = {f"{name}/q{i + 1}": value for i, value in enumerate(sums.unbind())}
    return terms | {f"{name}/q{i + 1}{SHARE}": value for i, value in enumerate(shares.unbind())}


@torch.no_grad()
def feature_std(features: Tensor) -> Tensor:
    """Standard deviation over the global batch of each channel of the normalised features (N, D), as a scalar.

    Averaged over channels, relative to 1 / sqrt(D): 1 when the features spread over the whole sphere, 0 when all are
    the same (appendix E). Every process must call it, with the same N.
    """
    return channel_std(features).mean() * features.shape[1] ** 0.5


@torch.no_grad()
def channel_std(features: Tensor) -> Tensor:
    """The same of each channel, (D,), not relative to anything: what figure 8 shows."""
    z = F.normalize(full_precision(features), dim=-1)
    count = len(z) * world_size()
    mean = all_reduce_sum(z.sum(0)) / count
    variance = all_reduce_sum((z - mean).square().sum(0)) / max(1, count - 1)
    return variance.sqrt()
