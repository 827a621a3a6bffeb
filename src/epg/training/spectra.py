"""Mean and covariance of the training images by class and spatial frequency, measured once before training starts."""

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from epg.config.settings import RunConfig
from epg.data.loading.base import ImageDataset
from epg.data.loading.passes import blocks
from epg.data.views.normalize import Normalizer
from epg.distributed import failing_together, rank, world_size
from epg.errors import UserError
from epg.networks import Spectrum
from epg.networks.spectrum import dct

PRIOR = 32  # images of the whole set that every class is mixed with: few images say little about a class
SMALLEST = 1e-6  # variance: a tenth of what rounding to 256 grey levels leaves


def measure(spectrum: Spectrum, dataset: ImageDataset, config: RunConfig, normalizer: Normalizer) -> None:
    """Fills a spectrum from the training images, the same on every process; all must call it.

    Raises DataError for a damaged image, unless `data.max_damaged` allows some: those are left out.
    """
    tensors = {name: torch.zeros_like(value, device="cpu") for name, value in spectrum.named_buffers()}
    with failing_together():
        if rank() == 0:
            tensors = measured(dataset, config, normalizer, spectrum.mean.shape)
    for name, buffer in spectrum.named_buffers():
        buffer.copy_(tensors[name])
        if world_size() > 1:
            sent = buffer.to("cuda" if dist.get_backend() == "nccl" else "cpu")
            dist.broadcast(sent, 0)
            buffer.copy_(sent)


def measured(dataset: ImageDataset, config: RunConfig, normalizer: Normalizer, shape: torch.Size) -> dict[str, Tensor]:
    """`gaussians_of` the training images of a run."""
    flip = bool(config.objective.model_dump().get("flip", False))
    parts = blocks(dataset, config.data.max_damaged)
    return gaussians_of(((normalizer.encode(images), labels) for _, images, labels in parts), shape, flip=flip)


def gaussians_of(parts: Iterator[tuple[Tensor, Tensor]], shape: torch.Size, *, flip: bool) -> dict[str, Tensor]:
    """`mean`, `variance` and `directions` of a `Spectrum` with means of this shape (K, C, S, S), K - 1 of them classes.

    With `flip`, those of the images and their mirror images: the coefficients of odd horizontal frequencies change
    their sign, so their mean is 0. A class k of n images is mixed with PRIOR images of the whole set.
    """
    gaussians, channels, size, _ = shape
    counts = torch.zeros(gaussians, dtype=torch.float64)
    sums = torch.zeros(shape, dtype=torch.float64)
    products = torch.zeros(gaussians, channels, channels, size, size, dtype=torch.float64)
    for images, labels in parts:
        coefficients = dct(images.double())
        product = coefficients[:, :, None] * coefficients[:, None]  # (N, C, C, S, S)
        for label in labels.unique().tolist() if gaussians > 1 else []:
            of_class = labels == label
            counts[label] += int(of_class.sum())
            sums[label] += coefficients[of_class].sum(0)
            products[label] += product[of_class].sum(0)
        counts[-1] += len(images)
        sums[-1] += coefficients.sum(0)
        products[-1] += product.sum(0)
    if counts[-1] < 2:
        raise UserError("--objective.parameterization spectral: needs at least 2 images to measure a spectrum of")
    means = sums / counts.clamp(min=1)[:, None, None, None]
    if flip:
        means[..., 1::2] = 0
    own = counts / (counts + PRIOR)
    own[-1] = 1
    own = own[:, None, None, None]
    mean = own * means + (1 - own) * means[-1]
    # The covariance about that mean, as E[x x^T] - m E[x]^T - E[x] m^T + m m^T.
    second = products / counts.clamp(min=1)[:, None, None, None, None]
    crossed = mean[:, :, None] * means[:, None]
    covariance = second - crossed - crossed.transpose(1, 2) + mean[:, :, None] * mean[:, None]
    covariance = own[:, None] * covariance + (1 - own[:, None]) * covariance[-1]
    values, vectors = torch.linalg.eigh(covariance.permute(0, 3, 4, 1, 2))  # (K, S, S, C), (K, S, S, C, C)
    return {
        "mean": mean.float(),
        "variance": values.permute(0, 3, 1, 2).clamp(min=SMALLEST).float().contiguous(),
        "directions": vectors.permute(0, 3, 4, 1, 2).float().contiguous(),
    }
