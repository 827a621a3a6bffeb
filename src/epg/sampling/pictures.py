"""PNG pictures: grids of images, and what the pre-training sees."""

import math
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from epg.data.dataset import ImageDataset
from epg.data.loader import BatchLoader
from epg.objectives.base import at_levels
from epg.objectives.pretraining import Pretraining

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


def views_picture(objective: Pretraining, dataset: ImageDataset, file: Path, count: int = 8) -> None:
    """One column per image: the image, its two views, and noise at rising levels."""
    loader = BatchLoader(dataset, batch_size=count, seed=objective.seed)
    batch = next(iter(loader))[0]
    batch = batch.to(next(objective.parameters()).device)
    draws = objective.draws(batch, step=0)
    rows = [batch.images]
    rows += [(objective.view(batch, draws, v) * 255).round().to(torch.uint8) for v in (0, 1)]
    plain = objective.normalizer.encode(batch.images)
    noise = draws.normal("noise", plain.shape[1:])
    rows += [objective.normalizer.decode(at_levels(plain, objective.shift * t, noise)) for t in (0.1, 0.5, 2.0)]
    save_grid(torch.cat(rows), file, columns=count)
