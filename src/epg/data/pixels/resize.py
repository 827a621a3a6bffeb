"""To the size of training as ADM does it, or with the same filters and no rounding in between."""

from typing import Literal

import numpy as np
from PIL import Image

from epg.errors import DataError

Resize = Literal["adm", "exact"]
MAX_PIXELS = 2**26  # decoding and scaling take 7 bytes per pixel


def resize_short_side(image: Image.Image, size: int, how: Resize = "adm") -> Image.Image:
    """Scale the short side of an 8-bit image to `size`: halve with a box filter while possible, then bicubic.

    "adm" rounds after every step, as ADM does, which brightens by half a grey level a halving; "exact" rounds once, at
    the end. Raises DataError for an image so elongated that this would exceed `MAX_PIXELS`.
    """
    sizes = [image.size]
    while min(sizes[-1]) >= 2 * size:
        sizes.append((sizes[-1][0] // 2, sizes[-1][1] // 2))
    scale = size / min(sizes[-1])
    last = round(sizes[-1][0] * scale), round(sizes[-1][1] * scale)
    if last[0] * last[1] > MAX_PIXELS:
        raise DataError(f"{sizes[-1][0]}x{sizes[-1][1]} pixels is too elongated to be scaled to {size}")
    if how == "adm" or image.size == last:
        return _scale(image, sizes[1:], last)
    bands = [_scale(band.convert("F"), sizes[1:], last) for band in image.split()]
    rounded = [Image.fromarray(np.clip(np.floor(np.asarray(band) + 0.5), 0, 255).astype(np.uint8)) for band in bands]
    return Image.merge(image.mode, rounded)


def _scale(image: Image.Image, halves: list[tuple[int, int]], last: tuple[int, int]) -> Image.Image:
    for size in halves:
        image = image.resize(size, Image.Resampling.BOX)
    return image.resize(last, Image.Resampling.BICUBIC)


def center_crop(image: Image.Image, size: int, how: Resize = "adm") -> Image.Image:
    """Scale the short side to `size` (see `resize_short_side`) and cut the centre square."""
    image = resize_short_side(image, size, how)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))
