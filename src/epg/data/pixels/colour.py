"""From an embedded colour profile to sRGB, which everything that shows or judges pixels assumes."""

import io
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageCms

from epg.data.pixels.deep import strips

Profile = Literal["none", "converted", "unread"]
"""What was done about a profile; "none" also where it is sRGB."""

TOLERANCE = 2  # levels: a profile that moves no colour further is sRGB under another name
SPACES = {"GRAY": "L", "RGB ": "RGB", "CMYK": "CMYK"}
BT709 = (0.3127, 0.329, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)  # white, red, green, blue: x and y
SRGB_GAMMA = 0.45455
SRGB_CODES = (b"\x01\x0d", b"\x01\x01")  # cICP: primaries of BT.709, transfer of sRGB or of BT.709


def to_srgb(image: Image.Image, profile: bytes | None) -> tuple[Image.Image, Profile]:
    """A decoded 8-bit image with its colours in sRGB; one without profile, or with one that says sRGB, as it is.

    Transparency stays, CMYK becomes RGB, grey stays grey; the image may be changed in place. A profile that is broken,
    or of another kind of image, is "unread", and changes nothing.
    """
    if not profile:
        return image, "none"
    if image.mode not in ("L", "LA", "RGB", "RGBA", "CMYK") or "transparency" in image.info:
        grey = image.mode in ("1", "L")
        wide = ("LA" if grey else "RGBA") if image.has_transparency_data else ("L" if grey else "RGB")
        image = image.convert(wide)
    grey = image.mode in ("L", "LA")
    try:
        transform = _transform(profile, "L" if grey else image.mode.removesuffix("A"))
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image, "unread"
    if transform is None:
        return image, "none"
    shown = Image.new("RGB", image.size) if image.mode == "CMYK" else image
    for box in strips(image):
        shown.paste(_converted(image.crop(box), transform, grey), box[:2])
    return shown, "converted"


def _converted(image: Image.Image, transform: ImageCms.ImageCmsTransform, grey: bool) -> Image.Image:
    """L, LA, RGB, RGBA or CMYK through a transform; what is grey stays grey."""
    alpha = image.getchannel("A") if image.mode in ("LA", "RGBA") else None
    shown = ImageCms.applyTransform(image.convert(transform.input_mode), transform)
    assert shown is not None
    shown = shown.convert("L") if grey else shown
    if alpha:
        shown.putalpha(alpha)
    return shown


@lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From a profile to sRGB; None where it changes nothing that matters. Raises ValueError for an unfit profile."""
    opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    space = SPACES.get(opened.profile.xcolor_space)
    if space is None or (
        space != mode and (space, mode) != ("RGB", "L")
    ):  # grey pictures with a profile of RGB are common
        raise ValueError(f"profile of {opened.profile.xcolor_space} on {mode}")
    transform = ImageCms.buildTransform(opened, _srgb(), space, "RGB")
    if space == "CMYK":
        return transform
    steps = np.linspace(0, 255, 256 if space == "L" else 9).astype(np.uint8)
    grid = steps[None] if space == "L" else np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(1, -1, 3)
    colours = Image.fromarray(np.ascontiguousarray(grid))
    shown = ImageCms.applyTransform(colours, transform)
    moved = np.abs(np.asarray(shown).astype(int) - np.asarray(colours.convert("RGB")).astype(int))
    return None if moved.max() <= TOLERANCE else transform


@lru_cache(maxsize=1)
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def other_claim(image: Image.Image, head: bytes) -> bool:
    """Whether a file without profile says elsewhere that its colours are not sRGB: PNG by cICP, gAMA or cHRM, a camera
    by EXIF's Adobe RGB. Such claims are counted, not followed."""
    if image.format == "PNG":
        code = _png_chunk(head, b"cICP")
        if code is not None:
            return code[:2] not in SRGB_CODES
        if "srgb" in image.info:
            return False
        gamma, primaries = image.info.get("gamma"), image.info.get("chromaticity")
        wrong_gamma = gamma is not None and abs(gamma - SRGB_GAMMA) > 0.01
        return wrong_gamma or (primaries is not None and not np.allclose(primaries, BT709, atol=0.01))
    if image.format in ("JPEG", "MPO") and "exif" in image.info:
        return _is_adobe_rgb(image)
    return False


def _png_chunk(head: bytes, name: bytes) -> bytes | None:
    """The data of a chunk before the pixels, where it lies in the first bytes of a file."""
    place = 8
    while place + 8 <= len(head):
        size, kind = int.from_bytes(head[place : place + 4], "big"), head[place + 4 : place + 8]
        if kind == name:
            return head[place + 8 : place + 8 + size]
        if kind == b"IDAT":
            return None
        place += size + 12
    return None


def _is_adobe_rgb(image: Image.Image) -> bool:
    """Cameras say so by the interoperability index R03 of EXIF, seldom by a profile."""
    try:
        exif = image.getexif()
        interop: Any = exif.get_ifd(0x8769).get(0xA005)
        return isinstance(interop, dict) and str(interop.get(1, "")).startswith("R03")
    except Exception:  # broken metadata of a picture that is fine; the EXIF parser raises many classes
        return False
