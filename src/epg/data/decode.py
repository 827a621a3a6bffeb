"""From the bytes of an image file to a (C, H, W) uint8 array of exactly the size a run asks for."""

import io
import os
import stat
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from epg.errors import DataError

# Extensions looked for in folders, and the only decoders that Pillow may use on them: leaving out the others keeps
# e.g. PostScript, which starts an external program, away from data that nobody has checked.
EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
MAX_PIXELS = 2**26  # decoding and scaling take 7 bytes per pixel
# Beyond this, an image must hold real detail: a file of a few kilobytes that declares a huge size is a bomb.
FREE_PIXELS = 24_000_000  # at most 8 bytes each
MIN_BYTES_PER_PIXEL = 1 / 32
ORIENTATION = 0x0112
ROWS = 256  # of a strip, where an image is converted piece by piece to save memory


@dataclass(frozen=True)
class Origin:
    """What an encoded image was before it was made opaque, upright and 8-bit."""

    width: int
    height: int
    format: str
    plain: bool
    """Already opaque, upright, 8-bit RGB or grey: its file can be used as it is."""


def resize_short_side(image: Image.Image, size: int) -> Image.Image:
    """Scale the short side to `size` as ADM does: halve with a box filter while possible, then bicubic.

    Raises DataError for an image so elongated that this would exceed `MAX_PIXELS`.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    if width * height > MAX_PIXELS:
        raise DataError(f"{image.width}x{image.height} pixels is too elongated to be scaled to {size}")
    return image.resize((width, height), Image.Resampling.BICUBIC)


def center_crop_adm(image: Image.Image, size: int) -> Image.Image:
    """Scale the short side to `size` and cut the centre square, as ADM's data preparation does.

    Raises DataError for an image so elongated that scaling its short side would exceed `MAX_PIXELS`.
    """
    image = resize_short_side(image, size)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def decode_image(
    source: bytes | str | Path, image_size: int, channels: int, *, name: str | None = None
) -> NDArray[np.uint8]:
    """Decode an encoded image (its bytes or its path) to uint8 (channels, image_size, image_size).

    EXIF rotation is applied, transparency is composited on white, every colour mode becomes RGB (channels = 3) or
    luminance (channels = 1), 16-bit values are scaled to 8 bits, then `center_crop_adm` brings it to size.
    `name` replaces the path in messages. The values of a pixel lie together in memory, and may be read-only. Raises
    DataError when the image cannot be decoded completely.
    """
    assert channels in (1, 3), channels
    name = name or ("image" if isinstance(source, bytes) else str(source))
    try:
        array = np.asarray(center_crop_adm(open_flat(source, channels)[0], image_size), dtype=np.uint8)
    except MemoryError:
        raise
    except Exception as error:  # decoders meet arbitrary bytes and raise nearly every exception class there is
        raise DataError(f"{name}: cannot decode this image: {error}. Replace it or remove it.") from error
    return array.reshape(image_size, image_size, channels).transpose(2, 0, 1)


def open_flat(source: bytes | str | Path, channels: int, background: str = "white") -> tuple[Image.Image, Origin]:
    """The image as opaque, upright 8-bit RGB (channels = 3) or luminance (1), of its first frame, and its origin.

    Raises DataError for a file that is empty, not regular or of too many pixels, and whatever decoders raise.
    """
    size, stream = _readable(source)
    try:
        opened = Image.open(stream, formats=FORMATS)
    except UnidentifiedImageError:
        raise DataError(f"it is no image of a known kind ({', '.join(FORMATS)})") from None
    with opened as image:
        pixels = image.width * image.height
        if pixels > MAX_PIXELS:
            raise DataError(f"{image.width}x{image.height} pixels are more than the limit of {MAX_PIXELS}")
        if pixels > FREE_PIXELS and size < pixels * MIN_BYTES_PER_PIXEL:
            raise DataError(f"{image.width}x{image.height} pixels in a file of only {size} bytes: a decompression bomb")
        image.load()
        turned = _orientation(image) != 1
        plain = image.mode in ("RGB", "L") and not turned and not image.has_transparency_data
        origin = Origin(image.width, image.height, image.format or "", plain)
        upright = ImageOps.exif_transpose(image) if turned else image
        flat = _flatten(upright, "L" if channels == 1 else "RGB", background)
        return flat, origin


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 (upright) where there is none that can be read."""
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # broken metadata of a picture that is fine; the EXIF parser raises many classes
        return 1


def _readable(source: bytes | str | Path) -> tuple[int, io.BytesIO | str | Path]:
    """The size in bytes; refuses what is empty or would block (a pipe, a device) before Pillow opens it."""
    if isinstance(source, bytes):
        size = len(source)
    else:
        status = os.stat(source)
        if not stat.S_ISREG(status.st_mode):
            raise DataError("it is not a regular file")
        size = status.st_size
    if size == 0:
        raise DataError("it is empty (0 bytes)")
    return size, io.BytesIO(source) if isinstance(source, bytes) else source


def _flatten(image: Image.Image, mode: str, background: str = "white") -> Image.Image:
    """Convert any Pillow mode to opaque 8-bit `mode` ("L" or "RGB")."""
    if image.mode == mode and not image.has_transparency_data:
        return image
    if image.mode == "F":
        raise DataError("32-bit float pixels have no known range; store it with 8 or 16 bits")
    if image.mode.startswith("I"):  # Pillow's own conversion of 16-bit and 32-bit integers clips instead of scaling
        image = _eight_bits(image)
    if not image.has_transparency_data:
        return image.convert(mode)
    flat = Image.new(mode, image.size)
    for top in range(0, image.height, ROWS):
        strip = image.crop((0, top, image.width, min(top + ROWS, image.height))).convert("RGBA")
        opaque = Image.new("RGBA", strip.size, background)
        opaque.alpha_composite(strip)
        flat.paste(opaque.convert("RGB").convert(mode), (0, top))
    return flat


def _eight_bits(image: Image.Image) -> Image.Image:
    """A 16-bit image scaled to 8 bits; 32-bit ones are taken where their values fit 16."""
    flat = Image.new("L", image.size)
    for top in range(0, image.height, ROWS):
        values = np.asarray(image.crop((0, top, image.width, min(top + ROWS, image.height)))).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise DataError("32-bit integer pixels have no known range; store it with 8 or 16 bits")
        flat.paste(Image.fromarray(((values + 128) // 257).astype(np.uint8)), (0, top))
    return flat
