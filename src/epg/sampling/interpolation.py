"""What lies between images: labels mixed linearly, noise along the sphere that it lies on."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from epg.config.sections import SamplingConfig
from epg.errors import UserError
from epg.generator import Generator

LONGEST_ROW, MOST_ROWS = 10, 8  # images that a row leads through, and rows
WITHOUT_CLASSES = 4  # images that a row leads through where all are of one class


@dataclass(frozen=True)
class Between(Generator):
    """Draws pictures between images of a seed: the noise of picture k, at every step, is that of two images, mixed."""

    stops: tuple[tuple[int, int, float], ...] = ()
    """Of each picture: the two images, by index, and how far it is on the way."""

    def unit_noise(self, indices: Sequence[int], seed: int = 0, step: int = -1) -> Tensor:
        from_, to, fractions = zip(*(self.stops[index] for index in indices), strict=True)
        a, b = super().unit_noise(from_, seed, step), super().unit_noise(to, seed, step)
        return on_sphere(a, b, torch.tensor(fractions, dtype=a.dtype, device=a.device))


def on_sphere(a: Tensor, b: Tensor, fraction: Tensor) -> Tensor:
    """Between directions a and b (N, ...), with lengths in proportion: `(sin((1 - f) w) a + sin(f w) b) / sin w` with w
    the angle between them; exactly a at 0 and b at 1. Linear where they are the same."""
    flat = torch.nn.functional.cosine_similarity(a.flatten(1), b.flatten(1)).clamp(-1, 1)
    angle = flat.acos()
    part_a, part_b = (1 - fraction) * angle, fraction * angle
    small = angle.sin().abs() < 1e-3
    weight_a = torch.where(small, 1 - fraction, part_a.sin() / angle.sin())
    weight_b = torch.where(small, fraction, part_b.sin() / angle.sin())
    shape = (-1, *[1] * (a.ndim - 1))
    return weight_a.view(shape) * a + weight_b.view(shape) * b


def interpolated(
    model: Generator,
    labels: Tensor | None,
    between: int,
    *,
    row: int,
    rows: int = 1,
    seed: int = 0,
    sampling: SamplingConfig | None = None,
    guide: Generator | None = None,
    batch_size: int = 64,
) -> Tensor:
    """uint8 (rows * columns, C, H, W): each row leads through `row` images of a seed, `between` pictures from one to
    the next, so that `columns = (row - 1) (between + 1) + 1`.

    Args:
        labels: of the images (rows * row,); None for an unconditional model.
        guide: as in `Generator.sample`.
    """
    stops = []
    for first in range(0, rows * row, row):
        for image in range(first, first + row - 1):
            stops += [(image, image + 1, k / (between + 1)) for k in range(between + 1)]
        stops.append((first + row - 2, first + row - 1, 1.0))
    own = {field.name: getattr(model, field.name) for field in fields(Generator)}
    weights = None
    if labels is not None:
        table = torch.eye(model.num_classes)[labels]
        weights = torch.stack([(1 - f) * table[a] + f * table[b] for a, b, f in stops])
    pictures = Between(**own, stops=tuple(stops))
    return pictures.sample(weights, len(stops), seed=seed, sampling=sampling, guide=guide, batch_size=batch_size)


def rows_of(count: int, classes: int) -> tuple[int, int]:
    """How many images a row leads through, one of each class if there are several, and how many rows `count` give.

    Raises UserError where there is nothing between.
    """
    row = min(count, LONGEST_ROW, classes if classes > 1 else WITHOUT_CLASSES)
    if row < 2:
        raise UserError("--interpolate: leads from image to image; --count must be at least 2")
    return row, min(MOST_ROWS, count // row)
