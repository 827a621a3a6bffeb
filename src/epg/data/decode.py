"""From the bytes of an image file to a (C, H, W) uint8 array of exactly the size a run asks for."""

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from epg.data.pixels.colour import Profile, other_claim, to_srgb
from epg.data.pixels.deep import Depth, eight_bits, kind_of, raw_mode, strips
from epg.data.pixels.plain import decoded
from epg.data.pixels.resize import MAX_PIXELS, center_crop
from epg.data.pixels.rules import RULES, PixelRules
from epg.errors import DataError, InterruptedRunError
from epg.storage.plain_file import open_plain

# Extensions looked for in folders, and the only decoders that Pillow may use on them: leaving out the others keeps
# e.g. PostScript, which starts an external program, away from data that nobody has checked.
EXTENSIONS = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif"),
    *(".ppm", ".pgm", ".pnm"),
)
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
# Beyond this, an image must hold real detail: a file of a few kilobytes that declares a huge size is a bomb.
FREE_PIXELS = 24_000_000  # at most 8 bytes each
HEAD_BYTES = 2**13  # that say what a file is
MIN_BYTES_PER_PIXEL = 1 / 32
# What is found under the name of an image, by the first bytes.
OTHERS = {
    rb"\s*<": "a web page or other text of markup",
    rb".{4}ftyp(heic|heix|hevc|mif1|msf1)": "HEIC: convert it to PNG or JPEG",
    rb".{4}ftypavi[fs]": "AVIF: convert it to PNG or JPEG",
    rb".{4}ftyp": "a video",
    rb"\xff\x0a|.{4}JXL ": "JPEG XL: convert it to PNG or JPEG",
    rb".{4}jP  |\xff\x4f\xff\x51": "JPEG 2000: convert it to PNG or JPEG",
    rb"%PDF": "a PDF",
    rb"PK\x03\x04": "a zip archive",
    rb"\x00\x00\x01\x00": "an icon: convert it to PNG",
    rb"8BPS": "a Photoshop file: convert it to PNG",
    rb"\x00+$": "nothing but zeros, as a download or disk that failed leaves",
}
ORIENTATION = 0x0112
TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
STRAIGHT = {"La": "LA", "RGBa": "RGBA"}  # colours not multiplied by transparency
GREY_MODES = ("1", "L", "LA", "La", "I", "F")


@dataclass(frozen=True)
class Origin:
    """What an encoded image was before it was made opaque, upright and 8-bit."""

    width: int
    height: int
    format: str
    plain: bool = True
    """Already opaque, upright, 8-bit RGB or grey in sRGB: its file can be used as it is."""
    rotated: bool = False
    transparent: bool = False
    """Some of its pixels were not opaque, and were put on the background."""
    profile: Profile = "none"
    other_colours: bool = False
    """Its colours are not sRGB by a claim that is not followed."""
    depth: Depth | None = None
    """Its values, where they had more than 8 bits."""
    frames: bool = False
    """It has more than one frame or page, of which the first is used."""


@contextmanager
def decoding(name: str = "") -> Iterator[None]:
    """Whatever decoders raise as DataError (of the image `name`): on arbitrary bytes, nearly every class there is."""
    try:
        yield
    except (MemoryError, InterruptedRunError):  # a stop signal may arrive in the middle of an image
        raise
    except Exception as error:
        reason = str(error) or type(error).__name__
        text = f"{name}: cannot decode this image: {reason}. Replace it or remove it." if name else reason
        raise DataError(text) from error


def decode_image(
    source: bytes | str | Path,
    image_size: int,
    channels: int,
    *,
    name: str | None = None,
    rules: PixelRules = RULES,
) -> NDArray[np.uint8]:
    """Decode an encoded image (its bytes or its path) to uint8 (channels, image_size, image_size).

    `open_flat`, then `center_crop`. `name` replaces the path in messages. The values of a pixel lie together in
    memory, and may be read-only. Raises DataError when the image cannot be decoded completely.
    """
    name = name or ("image" if isinstance(source, bytes) else str(source))
    return decode_with_origin(source, image_size, channels, name, rules)[0]


def decode_with_origin(
    source: bytes | str | Path, image_size: int, channels: int, name: str, rules: PixelRules = RULES
) -> tuple[NDArray[np.uint8], Origin]:
    """`decode_image`, and what the image was before."""
    assert channels in (1, 3), channels
    pixels = decoded(source, image_size, channels) if isinstance(source, bytes) else None
    if pixels is not None:
        return pixels.transpose(2, 0, 1), Origin(image_size, image_size, "PPM")
    with decoding(name):
        flat, origin = open_flat(source, channels, rules)
        array = np.asarray(center_crop(flat, image_size, rules.resize), dtype=np.uint8)
    return array.reshape(image_size, image_size, channels).transpose(2, 0, 1), origin


def open_flat(source: bytes | str | Path, channels: int, rules: PixelRules = RULES) -> tuple[Image.Image, Origin]:
    """The image as opaque, upright 8-bit sRGB (channels = 3) or luminance (1), of its first frame, and its origin.

    In this order: more than 8 bits to 8, EXIF's orientation, an embedded profile to sRGB, transparency onto the
    background, every colour mode to RGB or luminance. Raises DataError for a file that is empty, not regular or of too
    many pixels, for pixels whose range is unknown, and whatever decoders raise.
    """
    with _open(source) as (image, head):
        width, height, kind = image.width, image.height, kind_of(image)
        turn = _orientation(image) if image.format == "TIFF" else None  # Pillow turns those itself on loading
        depth: Depth | None = None
        if kind.deep:
            with _open(source) as (again, _):
                flat, depth = eight_bits(image, lambda: again, kind, rules.range)
        else:
            _scale_transparency(image)
            image.load()
            flat = image.convert(STRAIGHT[image.mode]) if image.mode in STRAIGHT else image
        if turn is None:
            turn = _orientation(image)
            flat = flat.transpose(TRANSPOSES[turn]) if turn in TRANSPOSES else flat
        profile = image.info.get("icc_profile")
        flat, done = to_srgb(flat, profile)
        opaque, transparent = _opaque(flat, "L" if channels == 1 else "RGB", rules.background)
        plain = image.mode in ("RGB", "L") and not (kind.deep or turn in TRANSPOSES or done == "converted")
        plain = plain and not image.has_transparency_data
        claim = not profile and other_claim(image, head)
        rotated = turn in TRANSPOSES
        frames = image.format != "MPO" and getattr(image, "is_animated", False)
        origin = Origin(width, height, image.format or "", plain, rotated, transparent, done, claim, depth, frames)
        return opaque, origin


def look_at(source: bytes | str | Path) -> tuple[int, int, int]:
    """(channels, height, width) that an image has once it is upright, 1 channel where it is grey; without decoding.

    Raises DataError for what `open_flat` refuses on sight.
    """
    with _open(source) as (image, _):
        grey = image.mode in GREY_MODES or image.mode.startswith("I;16") or raw_mode(image).startswith("LA;")
        if image.mode in ("P", "PA"):
            palette = np.array(image.getpalette("RGB"), dtype=np.uint8).reshape(-1, 3)
            grey = bool((palette == palette[:, :1]).all())
        turned = image.format != "TIFF" and _orientation(image) in (5, 6, 7, 8)
        height, width = (image.width, image.height) if turned else (image.height, image.width)
        return 1 if grey else 3, height, width


@contextmanager
def _open(source: bytes | str | Path) -> Iterator[tuple[Any, bytes]]:
    """The image, opened and not decoded, and the first bytes of its file. Raises DataError beyond the limits."""
    with io.BytesIO(source) if isinstance(source, bytes) else open_plain(source) as stream:
        size = stream.seek(0, os.SEEK_END)
        if size == 0:
            raise DataError("it is empty (0 bytes)")
        stream.seek(0)
        head = stream.read(HEAD_BYTES)
        stream.seek(0)
        try:
            image = Image.open(stream, formats=FORMATS)
        except UnidentifiedImageError:
            raise DataError(_unidentified(head)) from None
        with image:
            pixels = image.width * image.height
            twice = kind_of(image).deep and image.mode in ("RGB", "RGBA", "CMYK")  # read as high and as low bytes
            if pixels > MAX_PIXELS:
                raise DataError(f"{image.width}x{image.height} pixels are more than the limit of {MAX_PIXELS}")
            if pixels * (3 if twice else 1) > FREE_PIXELS and size < pixels * MIN_BYTES_PER_PIXEL:
                raise DataError(
                    f"{image.width}x{image.height} pixels in a file of only {size} bytes: a decompression bomb"
                )
            yield image, head


def _unidentified(head: bytes) -> str:
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "a TIFF of a kind that cannot be read (bits, channels or sample format); store it with 8 or 16 bits"
    found = next((kind for start, kind in OTHERS.items() if re.match(start, head, re.DOTALL)), "")
    return f"it is no image of a known kind ({', '.join(FORMATS)}){found and f', but {found}'}"


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 (upright) where there is none that can be read."""
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # broken metadata of a picture that is fine; the EXIF parser raises many classes
        return 1


def _scale_transparency(image: Image.Image) -> None:
    """Pillow scales grey of 2 and 4 bits to 8, but not the value that a PNG declares transparent."""
    bits = {"L;2": 2, "L;4": 4}.get(raw_mode(image))
    value = image.info.get("transparency")
    if bits and isinstance(value, int) and image.format == "PNG":
        most = 2**bits - 1
        image.info["transparency"] = (value & most) * 255 // most


def _opaque(image: Image.Image, mode: str, background: str) -> tuple[Image.Image, bool]:
    """Any 8-bit Pillow mode as opaque `mode` ("L" or "RGB"), and whether any of its pixels was not opaque."""
    if not image.has_transparency_data:
        return (image if image.mode == mode else image.convert(mode)), False
    if background == "none":
        return _without_alpha(image).convert(mode), False
    flat, transparent = Image.new(mode, image.size), False
    for box in strips(image):
        strip = image.crop(box).convert("RGBA")
        transparent = transparent or bool((np.asarray(strip)[..., 3] < 255).any())
        opaque = Image.new("RGBA", strip.size, background)
        opaque.alpha_composite(strip)
        flat.paste(opaque.convert("RGB").convert(mode), box[:2])
    return flat, transparent


def _without_alpha(image: Image.Image) -> Image.Image:
    """The colours of an image with transparency, as they are stored."""
    if image.mode in ("LA", "RGBA", "PA"):
        return image.convert("L" if image.mode == "LA" else "RGB")
    plain = image.copy()
    plain.info.pop("transparency", None)
    return plain.convert("RGB")
