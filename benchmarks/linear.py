"""A generator's denoiser against the best linear one: does it know more than mean and covariance of its images?

    python benchmarks/linear.py runs/mine/diffusion data/mine

The linear denoiser is that of a Gaussian with mean m and covariance C of training images, D(x, s) = m + C (C + s^2)^-1
(x - m): the least mean squared error that any affine function reaches. Printed is the generator's error divided by
it on images of the test split, with their labels and the same noise; below 1 is better.
"""

from pathlib import Path

import numpy as np
import torch
import tyro
from torch import Tensor

import epg
from epg.data.base import ImageDataset
from epg.data.dataset import open_dataset
from epg.evaluation.extractors.indomain import images_and_labels
from epg.generator import Generator

LEVELS = (0.1, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0)


def linear_denoiser(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (D,), variances (D,) and directions (D, D) of images (N, D)."""
    variances, directions = torch.linalg.eigh(torch.cov(images.double().T))
    return images.mean(0), variances.float().clamp(min=0), directions.float()


@torch.no_grad()
def ratios(model: Generator, train: ImageDataset, test: ImageDataset, fitted: int, judged: int) -> list[float]:
    """Error of the generator / error of the linear denoiser, at each of `LEVELS`."""

    def some(dataset: ImageDataset, count: int) -> tuple[Tensor, Tensor]:
        chosen = np.linspace(0, len(dataset) - 1, min(count, len(dataset))).astype(np.int64)
        images, labels = images_and_labels(dataset, chosen)
        return model.normalizer.encode(images), labels

    mean, variances, directions = linear_denoiser(some(train, fitted)[0].flatten(1))
    clean, labels = some(test, judged)
    found = []
    for level in LEVELS:
        noisy = clean + level * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
        ours = model.denoiser(noisy, level, labels if model.num_classes else None)
        shrunk = ((noisy.flatten(1) - mean) @ directions * (variances / (variances + level**2))) @ directions.T
        linear = (mean + shrunk).view_as(clean)
        found.append(float((ours - clean).square().mean() / (linear - clean).square().mean()))
    return found


def main(
    run: tyro.conf.Positional[Path], data: tyro.conf.Positional[str], fitted: int = 10_000, judged: int = 300
) -> None:
    """A generator's denoiser against the best linear one. Both splits are read from `data`."""
    model = epg.load(run)
    channels, size, _ = model.image_shape
    train, test = (open_dataset(data, image_size=size, channels=channels, split=split) for split in ("train", "test"))
    for level, ratio in zip(LEVELS, ratios(model, train, test, fitted, judged), strict=True):
        print(f"sigma {level:g}: {ratio:.2f}")


if __name__ == "__main__":
    tyro.cli(main)
