"""Mean and covariance of the training images by class and spatial frequency, measured once before training starts."""

from collections.abc import Iterator

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from epg.config.settings import RunConfig
from epg.data.loading.base import CachedDataset, ImageDataset
from epg.data.views.normalize import Normalizer
from epg.distributed import failing_together, rank, world_size
from epg.errors import DataError, UserError
from epg.networks import Spectrum
from epg.networks.spectrum import dct

MOST_IMAGES = 50_000  # evenly spread over the set: a variance is then known to 0.7 %
BLOCK = 256
PRIOR = 32  # images of the whole set that every class is mixed with: few images say little about a class
SMALLEST = 1e-6  # variance: a tenth of what rounding to 256 grey levels leaves


def measure(spectrum: Spectrum, dataset: ImageDataset, config: RunConfig, normalizer: Normalizer) -> None:
    """Fills a spectrum from the training images, the same on every process; all must call it.

    Raises DataError for a damaged image, unless `data.max_damaged` allows some: those are left out.
    """
    tensors = {name: torch.zeros_like(value, device="cpu") for name, value in spectrum.named_buffers()}
    with failing_together():
        if rank() == 0:
            flip = config.objective.model_dump().get("flip", False)
            tensors = gaussians_of(blocks(dataset, normalizer, config.data.max_damaged), spectrum.mean.shape, flip=flip)
    for name, buffer in spectrum.named_buffers():
        buffer.copy_(tensors[name])
        if world_size() > 1:
            sent = buffer.to("cuda" if dist.get_backend() == "nccl" else "cpu")
            dist.broadcast(sent, 0)
            buffer.copy_(sent)


def blocks(dataset: ImageDataset, normalizer: Normalizer, max_damaged: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Network values (N, C, H, W) and labels (N,) of at most MOST_IMAGES images, in order."""
    chosen = np.unique(np.linspace(0, len(dataset) - 1, min(MOST_IMAGES, len(dataset))).round().astype(np.int64))
    for start in range(0, len(chosen), BLOCK):
        images, labels = read_images(dataset, chosen[start : start + BLOCK], max_damaged)
        if len(labels):
            yield normalizer.encode(images), labels


def read_images(dataset: ImageDataset, indices: np.ndarray, max_damaged: int) -> tuple[Tensor, Tensor]:
    """uint8 (N, C, H, W) and labels (N,), without damaged images where some are allowed."""
    if isinstance(dataset, CachedDataset) and not dataset.damaged:
        return dataset.images[torch.from_numpy(indices)], torch.from_numpy(dataset.labels[indices])
    kept, images = [], []
    for index in indices:
        try:
            images.append(torch.from_numpy(np.array(dataset[int(index)][0])))
            kept.append(index)
        except DataError:
            if not max_damaged:
                raise
    if not images:
        return torch.empty(0), torch.empty(0, dtype=torch.int64)
    return torch.stack(images), torch.from_numpy(dataset.labels[np.array(kept)])


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
