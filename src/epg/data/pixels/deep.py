"""Pixels of more than 8 bits: their exact values, read through Pillow, and how they become 8.

Pillow keeps only the high byte of 16-bit colour and of 16-bit grey with transparency. Asked for the same file in the
other byte order it gives the low one, so that two passes of its own decoder give the value.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from epg.errors import DataError

Range = tuple[float, float]
"""The values that are black and white."""

STRIP_PIXELS = 2**18  # an image is converted piece by piece, to save memory
BITS_PER_SAMPLE, PHOTOMETRIC, PLANAR, SAMPLE_FORMAT = 258, 262, 284, 339  # tags of TIFF
OTHER_ORDER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
TWO_IN_ONE = "LA;16B"  # grey and transparency of 16 bits each; there is no raw mode of the other order
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


@dataclass(frozen=True)
class Kind:
    """How the values of an image are stored."""

    bits: int
    signed: bool = False
    real: bool = False

    @property
    def deep(self) -> bool:
        """Whether Pillow's 8-bit pixels would not be these values."""
        return self.bits > 8 or self.signed

    @property
    def white(self) -> int | None:
        """The largest value, where the file's format says that it is white."""
        return None if self.signed or self.real or self.bits > 16 else 2**self.bits - 1

    def __str__(self) -> str:
        number = "float" if self.real else "signed" if self.signed else "unsigned"
        return f"{self.bits}-bit {number}"


@dataclass(frozen=True)
class Depth:
    """What the values of a deep image were."""

    kind: Kind
    low: float
    high: float


def kind_of(image: Image.Image) -> Kind:
    """How an opened image stores its values; nothing is decoded."""
    if image.format == "TIFF":
        tags: Any = image.tag_v2  # type: ignore[attr-defined]
        formats = tags.get(SAMPLE_FORMAT, (1,))
        known = formats if isinstance(formats, tuple) else (formats,)
        bits = tags.get(BITS_PER_SAMPLE, (1,))
        return Kind(max(bits) if isinstance(bits, tuple) else int(bits), 2 in known, 3 in known)
    if image.format == "PPM":  # Pillow scales what is not 8-bit itself, by the largest value that the file names
        return Kind(32, real=True) if image.mode == "F" else Kind(16 if image.mode.startswith("I") else 8)
    return Kind(16 if image.format == "PNG" and raw_mode(image).endswith(";16B") else 8)


def raw_mode(image: Image.Image) -> str:
    """How the pixels lie in the file, in Pillow's words; "" where it does not say."""
    tiles = getattr(image, "tile", None)
    args = tiles[0][3] if tiles else ""
    raw = args[0] if isinstance(args, tuple) and args else args
    return raw if isinstance(raw, str) else ""


def eight_bits(
    image: Image.Image, again: Callable[[], Image.Image], kind: Kind, value_range: Range | None
) -> tuple[Image.Image, Depth]:
    """An opened deep image as 8-bit L, LA, RGB, RGBA or CMYK, with black and white at `value_range`.

    Without a range, values of at most 16 unsigned bits become v * 255 / (2^bits - 1), rounded. `again` opens the same
    file once more. Raises DataError where the range is needed and not known, and for pixels that Pillow garbles.
    """
    white = kind.white
    if value_range is None and white is None:
        raise DataError(
            f"{kind} pixels have no known range: say which values are black and white, --range LOW HIGH (in training "
            "--data.range LOW HIGH)"
        )
    planar = image.format == "TIFF" and image.tag_v2.get(PLANAR) == 2  # type: ignore[attr-defined]
    if planar and image.mode not in ("I", "F") and not image.mode.startswith("I;"):
        raise DataError(
            f"{kind} TIFF with its colours in separate planes, of which Pillow does not read all bits; store them "
            "together, for example with tiffcp -p contig"
        )
    transparent = image.info.get("transparency")
    flat: Image.Image | None = None
    lowest, highest = np.inf, -np.inf
    for top, values, alpha in _strips(image, again, kind):
        if kind.real and not np.isfinite(values).all():
            raise DataError("its pixels hold NaN or infinity")
        lowest, highest = min(lowest, float(values.min())), max(highest, float(values.max()))
        if alpha is None and transparent is not None:
            alpha = np.uint16(65535) * (values != np.asarray(transparent)).any(axis=2, keepdims=True)
        parts = [_scaled(values, value_range or (0, white or 0))]
        parts += [] if alpha is None else [_scaled(alpha, (0, 65535))]
        pixels = parts[0] if alpha is None else np.concatenate(parts, axis=2)
        mode = "CMYK" if image.mode == "CMYK" else MODES[pixels.shape[2]]
        flat = flat or Image.new(mode, image.size)
        flat.paste(Image.fromarray(pixels[..., 0] if mode == "L" else pixels, mode), (0, top))
    assert flat is not None
    return flat, Depth(kind, lowest, highest)


def _scaled(values: NDArray[Any], value_range: Range) -> NDArray[np.uint8]:
    """Rounded to 0 to 255, and clipped to it."""
    low, high = value_range
    if (low, high) == (0, 65535) and values.dtype != np.float32:  # the usual case, several times faster
        return ((np.clip(values, 0, 65535).astype(np.uint32) + 128) // 257).astype(np.uint8)
    scaled = np.clip((values.astype(np.float64) - low) * (255 / (high - low)), 0, 255)
    return np.floor(scaled + 0.5).astype(np.uint8)


def _strips(
    image: Image.Image, again: Callable[[], Image.Image], kind: Kind
) -> Iterator[tuple[int, NDArray[Any], NDArray[Any] | None]]:
    """(row, values (H, W, C), alpha (H, W, 1) of 0 to 65535 or None), from top to bottom."""
    raw = raw_mode(image)
    inverted = image.format == "TIFF" and image.tag_v2.get(PHOTOMETRIC) == 0 and kind.white  # type: ignore[attr-defined]
    premultiplied = raw.startswith("RGBa")
    low: Image.Image | None = None
    if raw == TWO_IN_ONE:
        _read_as(image, "I;32B", "I")
    elif image.mode in ("RGB", "RGBA", "CMYK"):
        straight = raw.replace("RGBa", "RGBA")  # the values themselves, not what Pillow would divide
        low = again()
        _read_as(image, straight)
        _read_as(low, straight[:-1] + OTHER_ORDER[straight[-1]])
        low.load()
    image.load()
    for box in strips(image):
        values = np.asarray(image.crop(box))
        alpha: NDArray[Any] | None = None
        if raw == TWO_IN_ONE:
            both = values.view(np.uint32)
            values, alpha = both >> 16, (both & 0xFFFF)[..., None]
        elif low is not None:
            values = values.astype(np.uint16) * 256 + np.asarray(low.crop(box))
            if values.shape[2] == 4 and image.mode == "RGBA":
                values, alpha = values[..., :3], values[..., 3:]
                if premultiplied:
                    values = np.minimum(values.astype(np.uint32) * 65535 // np.maximum(alpha, 1), 65535)
        elif values.dtype == np.int32 and not kind.signed:
            values = values.view(np.uint32)  # Pillow has no unsigned mode
        elif values.dtype == np.uint8 and kind.signed:
            values = values.view(np.int8)
        values = values[..., None] if values.ndim == 2 else values
        yield box[1], kind.white - values if inverted and kind.white else values, alpha


def strips(image: Image.Image) -> Iterator[tuple[int, int, int, int]]:
    """Boxes of full width, from top to bottom."""
    rows = max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield 0, top, image.width, min(top + rows, image.height)


def _read_as(image: Image.Image, raw: str, mode: str | None = None) -> None:
    """Have an image that is opened and not yet loaded decoded from another raw mode."""
    opened: Any = image
    opened.tile = [
        tile._replace(args=raw if isinstance(tile.args, str) else (raw, *tile.args[1:])) for tile in opened.tile
    ]
    if mode is not None:
        opened._mode = mode
