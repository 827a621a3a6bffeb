"""The best linear denoiser of a set of images, by spatial frequency: what spectral preconditioning starts from."""

import contextlib
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from epg.schedule import SIGMA_DATA


class Spectrum(nn.Module):
    """Gaussians over images, one for each class or one for all, whose frequencies (DCT-II) are independent.

    Of every frequency: the mean of its coefficient in each colour, and the covariance of the colours as variances and
    directions. These are measured (`epg.training.spectra`), not trained: buffers, which travel with the network. Before
    they are measured they are white with standard deviation sigma_data, which makes the preconditioning EDM's.

    Args:
        gaussians: 1, or the number of classes and one more, the last, for images without a class.
    """

    mean: Tensor
    variance: Tensor
    directions: Tensor

    def __init__(self, gaussians: int, channels: int, image_size: int, sigma_data: float = SIGMA_DATA) -> None:
        super().__init__()
        shape = (gaussians, channels, image_size, image_size)
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("variance", torch.full(shape, sigma_data**2))
        identity = torch.eye(channels)[None, :, :, None, None].expand(gaussians, -1, -1, image_size, image_size)
        self.register_buffer("directions", identity.clone())  # (K, colour, direction, H, W)

    @property
    def gaussians(self) -> int:
        return len(self.mean)

    def overall(self) -> "Spectrum":
        """The Gaussian of all images alone, as it is now."""
        alone = Spectrum(1, *self.mean.shape[1:3])
        for name, value in self.named_buffers():
            getattr(alone, name).copy_(value[-1:])
        return alone

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """E[image | x] under the Gaussian of each label: noisy x (N, C, H, W) at shifted levels (N,) -> (N, C, H, W).

        With the colours of a frequency in the directions of their covariance: `m + v / (v + s^2) (x - m)`. Of mixtures
        of labels, with weights (N, K), the same mixtures of that.
        """
        return self.posterior(x, sigma, labels)[0]

    def posterior(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`forward` and `spread` of the same images: (N, C, H, W) and (N,)."""
        if self.gaussians > 1 and labels is not None and labels.is_floating_point():
            return mixed(lambda numbers: self(x, sigma, numbers), labels), self.spread(sigma, labels)
        rows = self.rows(labels, x.device)
        mean, directions = self.mean.to(x.device)[rows], self.directions.to(x.device)[rows]
        shrinkage = self._shrinkage(sigma, rows)
        with full_float32(x.device):
            along = dot(directions, (dct(x) - mean)[:, :, None], 1)  # (N, direction, H, W)
            estimate = inverse_dct(mean + dot(directions, (shrinkage * along)[:, None], 2))
        return estimate, unknown(sigma, shrinkage)

    def spread(self, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """Root mean square of what the linear denoiser leaves unknown, at shifted levels (N,): (N,).

        The mean posterior variance, over colours and frequencies: `v s^2 / (v + s^2)`; of mixtures the mean of theirs.
        """
        if self.gaussians > 1 and labels is not None and labels.is_floating_point():
            return mixed(lambda numbers: self.spread(sigma, numbers).square(), labels).sqrt()
        rows = self.rows(labels, sigma.device)
        return unknown(sigma, self._shrinkage(sigma, rows))

    def sample(self, unit: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images (N, C, H, W) of the Gaussian of each label, from standard normal numbers of that shape."""
        rows = self.rows(labels, unit.device)
        along = self.variance.to(unit.device)[rows].sqrt() * unit
        with full_float32(unit.device):
            coloured = dot(self.directions.to(unit.device)[rows], along[:, None], 2)
            return inverse_dct(self.mean.to(unit.device)[rows] + coloured)

    def rows(self, labels: Tensor | None, device: torch.device) -> Tensor:
        """Which Gaussian each label takes (N,); without labels the last one, (1,)."""
        if labels is None or self.gaussians == 1:
            return torch.full((1,), self.gaussians - 1, device=device)
        return labels

    def _shrinkage(self, sigma: Tensor, rows: Tensor) -> Tensor:
        variance = self.variance.to(sigma.device)[rows]
        return variance / (variance + sigma.view(-1, 1, 1, 1) ** 2)


def unknown(sigma: Tensor, shrinkage: Tensor) -> Tensor:
    """Root mean square (N,) of what is unknown where each frequency (N, C, H, W) keeps `v / (v + s^2)` of itself."""
    return sigma * shrinkage.mean((1, 2, 3)).sqrt()


def dot(a: Tensor, b: Tensor, dim: int) -> Tensor:
    """`(a * b).sum(dim)` over a short dimension: the product is never there as a whole."""
    first, *others = zip(*(factor.unbind(dim) for factor in torch.broadcast_tensors(a, b)), strict=True)
    total = first[0] * first[1]
    for one, other in others:
        total = torch.addcmul(total, one, other)
    return total


def mixed(function: Callable[[Tensor], Tensor], weights: Tensor) -> Tensor:
    """What a function of labels (N,) gives, (N, ...), in mixtures: each class is asked for once, weights are (N, K)."""
    total = torch.zeros(())
    for label in weights.any(0).nonzero().flatten().tolist():
        of_class = function(torch.full((len(weights),), label, device=weights.device))
        total = total.to(of_class) + weights[:, label].view(-1, *[1] * (of_class.ndim - 1)) * of_class
    return total


def dct(images: Tensor) -> Tensor:
    """Orthonormal two-dimensional DCT-II of square images (..., S, S)."""
    matrix = cosines(images.shape[-1], images)
    return matrix @ images @ matrix.T


def inverse_dct(coefficients: Tensor) -> Tensor:
    """The inverse of `dct`."""
    matrix = cosines(coefficients.shape[-1], coefficients)
    return matrix.T @ coefficients @ matrix


def cosines(size: int, like: Tensor) -> Tensor:
    """The orthonormal DCT-II matrix (frequency, place), made on the device of a tensor and of its type."""
    numbers = torch.arange(size, device=like.device)
    turns = (numbers[:, None] * (2 * numbers + 1)) % (4 * size)  # whole numbers: no digits are lost to large angles
    matrix = torch.cos(turns.to(like.dtype) * (math.pi / (2 * size))) * math.sqrt(2 / size)
    return torch.where(numbers[:, None] == 0, math.sqrt(1 / size), matrix)


@contextlib.contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Products in float32 inside the `with`, whatever autocast and TF32 say outside: both would cost three digits."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
