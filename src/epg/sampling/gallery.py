"""The same images at several scales of guidance, as a labelled picture (the paper's figures 10 to 18)."""

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from epg.config.sections import SamplingConfig
from epg.generator import Generator
from epg.sampling.pictures import grid

MOST = 256  # images at each scale
CAPTION, MARGIN = 16, 6  # pixels
WIDEST = 200  # pixels of a class's name


def gallery(
    model: Generator,
    labels: Tensor | None,
    samplings: Sequence[SamplingConfig],
    *,
    count: int,
    seed: int = 0,
    guide: Generator | None = None,
    batch_size: int = 64,
) -> Image.Image:
    """The first images of a seed: a row for each class among them, and from left to right a block of its images for
    each of the samplings, which differ in their scale of guidance; above it says which, at the left which class.

    Args:
        labels: of the images (count,) or more; None for an unconditional model.
        guide: as in `Generator.sample`.
    """
    count = min(count, MOST)
    labels = None if labels is None else labels[:count]
    rows = rows_of([0] * count if labels is None else labels.tolist())
    blocks = []
    for sampling in samplings:
        plain = None if sampling.guidance == 1 else guide
        images = model.sample(labels, count, seed=seed, sampling=sampling, guide=plain, batch_size=batch_size)
        blocks.append(block(images, list(rows.values())))
    names = ["" if labels is None else name_of(model, label) for label in rows]
    return joined(blocks, [f"guidance {sampling.guidance:g}" for sampling in samplings], names)


def rows_of(labels: Sequence[int]) -> dict[int, list[int]]:
    """Which images are of a class, by the class, in the order of the images."""
    rows: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        rows.setdefault(label, []).append(index)
    return rows


def name_of(model: Generator, label: int) -> str:
    """The first of a class's names; its number where it has none."""
    return model.class_names[label].split(",")[0] if model.class_names else str(label)


def block(images: Tensor, rows: Sequence[Sequence[int]]) -> Image.Image:
    """Images (N, C, H, W) in rows, white where a row is shorter than others."""
    width = max(map(len, rows))
    white = torch.full_like(images[0], 255)
    places = [images[row[i]] if i < len(row) else white for row in rows for i in range(width)]
    return grid(torch.stack(places), width)


def joined(blocks: Sequence[Image.Image], above: Sequence[str], beside: Sequence[str]) -> Image.Image:
    """Blocks of equal size side by side with a line of text above each, and one beside each of their rows."""
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    names = [shortened(pen, name) for name in beside]
    left = max((int(pen.textlength(name)) for name in names), default=0) + MARGIN
    step = max(blocks[0].width, *(int(pen.textlength(text)) for text in above)) + MARGIN
    sheet = Image.new("RGB", (left + step * len(blocks), CAPTION + blocks[0].height), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (picture, text) in enumerate(zip(blocks, above, strict=True)):
        sheet.paste(picture, (left + i * step, CAPTION))
        draw.text((left + i * step + 4, 2), text, fill="black")
    height = blocks[0].height / len(names)
    for i, name in enumerate(names):
        draw.text((MARGIN // 2, CAPTION + (i + 0.5) * height), name, fill="black", anchor="lm")
    return sheet


def shortened(pen: ImageDraw.ImageDraw, name: str) -> str:
    """A name that is too wide loses its end."""
    if pen.textlength(name) <= WIDEST:
        return name
    while name and pen.textlength(name + "...") > WIDEST:
        name = name[:-1]
    return name + "..."
