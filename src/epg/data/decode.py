"""From the bytes of an image file to a (C, H, W) uint8 array of exactly the size a run asks for."""

import io
import os
import stat
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from epg.errors import DataError

# Extensions looked for in folders, and the only decoders that Pillow may use on them: leaving out the others keeps
# e.g. PostScript, which starts an external program, away from data that nobody has checked.
EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
MAX_PIXELS = 2**26  # an RGB image of this size takes 192 MiB


def center_crop_adm(image: Image.Image, size: int) -> Image.Image:
    """Scale the short side to `size` and cut the centre square, as ADM's data preparation does.

    Raises DataError for an image so elongated that scaling its short side would exceed `MAX_PIXELS`.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    if width * height > MAX_PIXELS:
        raise DataError(f"{image.width}x{image.height} pixels is too elongated to be scaled to {size}")
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def decode_image(
    source: bytes | str | Path, image_size: int, channels: int, *, name: str | None = None
) -> NDArray[np.uint8]:
    """Decode an encoded image (its bytes or its path) to uint8 (channels, image_size, image_size).

    EXIF rotation is applied, transparency is composited on white, every colour mode becomes RGB (channels = 3) or
    luminance (channels = 1), 16-bit values are scaled to 8 bits, then `center_crop_adm` brings it to size.
    `name` replaces the path in messages. Raises DataError when the image cannot be decoded completely.
    """
    assert channels in (1, 3), channels
    name = name or ("image" if isinstance(source, bytes) else str(source))
    try:
        with Image.open(_readable(source), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(f"{image.width}x{image.height} pixels are more than the limit of {MAX_PIXELS}")
            flat = _flatten(ImageOps.exif_transpose(image), "L" if channels == 1 else "RGB")
        array = np.asarray(center_crop_adm(flat, image_size), dtype=np.uint8)
    except Exception as error:  # decoders meet arbitrary bytes and raise nearly every exception class there is
        raise DataError(f"{name}: cannot decode this image: {error}. Replace it or remove it.") from error
    return np.ascontiguousarray(array.reshape(image_size, image_size, channels).transpose(2, 0, 1))


def _readable(source: bytes | str | Path) -> io.BytesIO | str | Path:
    """Refuse what is empty or would block (a pipe, a device) before Pillow opens it."""
    if isinstance(source, bytes):
        size = len(source)
    else:
        status = os.stat(source)
        if not stat.S_ISREG(status.st_mode):
            raise DataError("it is not a regular file")
        size = status.st_size
    if size == 0:
        raise DataError("it is empty (0 bytes)")
    return io.BytesIO(source) if isinstance(source, bytes) else source


def _flatten(image: Image.Image, mode: str) -> Image.Image:
    """Convert any Pillow mode to opaque 8-bit `mode` ("L" or "RGB")."""
    if image.mode == "F":
        raise DataError("32-bit float pixels have no known range; store it with 8 or 16 bits")
    if image.mode.startswith("I"):  # Pillow's own conversion of 16-bit and 32-bit integers clips instead of scaling
        values = np.asarray(image).astype(np.float64)
        if values.min() < 0 or values.max() > 65535:
            raise DataError("32-bit integer pixels have no known range; store it with 8 or 16 bits")
        image = Image.fromarray(np.round(values / 257).astype(np.uint8))
    if image.has_transparency_data:
        opaque = Image.new("RGBA", image.size, "white")
        opaque.alpha_composite(image.convert("RGBA"))
        image = opaque.convert("RGB")
    return image.convert(mode)
