"""One pass over the training images, to measure something of them before the first step."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from epg.data.loading.base import CachedDataset, ImageDataset
from epg.errors import DataError

MOST_IMAGES = 50_000  # evenly spread over the set: a variance is then known to 0.7 %
BLOCK = 256


def blocks(
    dataset: ImageDataset, max_damaged: int, part: tuple[int, int] = (0, 1)
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Place of the first, uint8 (N, C, H, W) and labels (N,) of at most MOST_IMAGES images, in order.

    Args:
        max_damaged: 0 raises DataError for a damaged image, otherwise it is left out.
        part: this process's number and how many share the pass, block by block.
    """
    chosen = np.unique(np.linspace(0, len(dataset) - 1, min(MOST_IMAGES, len(dataset))).round().astype(np.int64))
    for start in range(part[0] * BLOCK, len(chosen), part[1] * BLOCK):
        images, labels = read_images(dataset, chosen[start : start + BLOCK], max_damaged)
        if len(labels):
            yield start, images, labels


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
