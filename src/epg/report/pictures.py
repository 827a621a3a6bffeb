"""Pictures inside the page: as they are where they are small, smaller copies otherwise."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup
from PIL import Image

SMALL = 60_000  # bytes, up to which a PNG is taken as it is
SIDES = (1024, 768, 512, 384, 256)  # of copies, in pixels; the first that is small enough is taken
LARGEST = 40_000_000  # pixels of a file that is read at all
QUALITY = 82


@dataclass(frozen=True)
class Picture:
    """One picture and what it shows."""

    uri: Markup
    width: int
    height: int
    caption: str
    step: int | None = None
    """Of training, in a strip."""


def picture(file: Path, caption: str, most: int, step: int | None = None) -> Picture | None:
    """A PNG file in at most about so many bytes, for the page; None where it cannot be read."""
    try:
        data = file.read_bytes()
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            width, height = image.size
            if width * height > LARGEST:
                return None
            kind = "png"
            if len(data) > max(most, SMALL):
                kind = "jpeg"
                data, (width, height) = smaller(image, most)
            else:
                image.verify()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    return Picture(data_uri(data, kind), width, height, caption, step)


def smaller(image: Image.Image, most: int) -> tuple[bytes, tuple[int, int]]:
    """A JPEG of an image and its size: the largest of SIDES that fits, or the smallest."""
    image = image.convert("RGB")
    for side in SIDES:
        copy = image.copy()
        copy.thumbnail((side, side))
        stream = io.BytesIO()
        copy.save(stream, "JPEG", quality=QUALITY)
        if stream.tell() <= most:
            break
    return stream.getvalue(), copy.size


def of_image(image: Image.Image, caption: str) -> Picture:
    """A picture that was just drawn."""
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return Picture(data_uri(stream.getvalue(), "png"), *image.size, caption)


def data_uri(data: bytes, kind: str) -> Markup:
    return Markup(f"data:image/{kind};base64,{base64.b64encode(data).decode()}")


def spread_out(steps: Sequence[int], most: int) -> list[int]:
    """At most so many of the steps, at equal distances, the first and the last among them."""
    if len(steps) <= most:
        return list(steps)
    return [steps[round(i * (len(steps) - 1) / (most - 1))] for i in range(most)]
