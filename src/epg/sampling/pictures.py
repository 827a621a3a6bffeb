"""PNG pictures: grids of images, and what an objective learns from."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

if TYPE_CHECKING:
    from epg.data.loading.base import ImageDataset
    from epg.objectives.base import Objective

SMALLEST_TILE = 48  # pixels on screen; smaller images are enlarged by whole factors


def grid(images: Tensor, columns: int | None = None, gap: int = 4) -> Image.Image:
    """uint8 images (N, C, H, W) side by side, small ones enlarged so that a pixel stays a square."""
    n, _, height, width = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    factor = max(1, math.ceil(SMALLEST_TILE / height))
    tile_h, tile_w = height * factor + gap, width * factor + gap
    rows = math.ceil(n / columns)
    sheet = Image.new("RGB", (columns * tile_w + gap, rows * tile_h + gap), "white")
    for i, image in enumerate(images.cpu()):
        pixels = image.expand(3, -1, -1).permute(1, 2, 0).numpy()
        tile = Image.fromarray(pixels).resize((width * factor, height * factor), Image.Resampling.NEAREST)
        sheet.paste(tile, (gap + i % columns * tile_w, gap + i // columns * tile_h))
    return sheet


def save_grid(images: Tensor, file: Path, columns: int | None = None) -> None:
    """`grid` into a PNG file; folders are made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    grid(images, columns).save(file)


def examples_picture(objective: "Objective", dataset: "ImageDataset", file: Path, count: int = 8) -> None:
    """What an objective learns from, one column per image."""
    from epg.data.loading.loader import BatchLoader  # which drawing samples does not need

    batch = next(iter(BatchLoader(dataset, batch_size=count, seed=objective.seed)))[0]
    rows = objective.examples(batch.to(next(objective.parameters()).device))
    save_grid(torch.cat(rows), file, columns=count)
