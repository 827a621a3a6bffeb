"""How pixels are stored: lossless PNG, WebP or uncompressed, the hash of each image, and its look in 64 bits."""

import hashlib
import io
import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from epg.data.decode import FORMATS, Origin, decode_image, decoding, open_flat
from epg.data.pixels.resize import MAX_PIXELS, center_crop, resize_short_side
from epg.data.pixels.rules import RULES, PixelRules
from epg.errors import DataError

StoreFormat = Literal["png", "webp", "raw"]
PPM_MAGIC = {3: b"P6", 1: b"P5"}
MODES = {3: "RGB", 1: "L"}


@dataclass(frozen=True)
class PixelOptions(PixelRules):
    """What preparation does to an image."""

    image_size: int
    channels: int = 3
    format: StoreFormat = "png"
    resize_only: bool = False
    """Scale the short side to `image_size` and keep the rest, instead of cutting a square."""


@dataclass(frozen=True)
class Record:
    """One image, ready to store."""

    data: bytes
    sha256: bytes
    origin: Origin
    kept: bool  # `data` is the original file
    look: int  # 64 bits that similar images share
    sums: NDArray[np.int64]  # (2, channels): sum of the pixel values, of their squares
    pixels: int


def make_record(data: bytes, options: PixelOptions) -> Record:
    """Decode, crop and encode one image. Raises DataError with the reason where that is impossible."""
    try:
        with decoding(), warnings.catch_warnings():  # what matters becomes an error; the rest would fill the terminal
            warnings.simplefilter("ignore")
            flat, origin = open_flat(data, options.channels, options)
            scale = resize_short_side if options.resize_only else center_crop
            image = scale(flat, options.image_size, options.resize)
            image.info.clear()  # profiles, comments and places: of no use for training, and somebody's
            kept = origin.plain and origin.format == "JPEG" and options.format != "raw" and flat.size == image.size
            stored = data if kept else encode(image, options.format)
            sha256, pixels = hashlib.sha256(stored).digest(), image.width * image.height
            return Record(stored, sha256, origin, kept, look(image), _sums(image), pixels)
    except MemoryError as error:
        raise DataError("there is not enough memory to decode it") from error


def encode(image: Image.Image, file_format: StoreFormat) -> bytes:
    """A lossless file of an 8-bit grey or RGB image; "raw" is a PPM or PGM, which is a line of text and the pixels."""
    stream = io.BytesIO()
    if file_format == "png":
        image.save(stream, "PNG", compress_level=3)  # level 6 takes twice as long for 3 % less
    elif file_format == "webp":
        image.save(stream, "WEBP", lossless=True, method=1, quality=20, exact=True)
    else:
        image.save(stream, "PPM")
    return stream.getvalue()


def decode_stored(data: bytes, image_size: int, channels: int, rules: PixelRules = RULES) -> NDArray[np.uint8]:
    """`decode_image` of an image of a store: uint8 (channels, image_size, image_size).

    Images there are upright, so those of the right size and mode need no more than decoding. Raises DataError.
    """
    header = b"%s\n%d %d\n255\n" % (PPM_MAGIC[channels], image_size, image_size)
    if data.startswith(header) and len(data) == len(header) + channels * image_size**2:
        pixels = np.frombuffer(data, np.uint8, offset=len(header)).reshape(image_size, image_size, channels)
        return pixels.transpose(2, 0, 1)
    with decoding(), Image.open(io.BytesIO(data), formats=FORMATS) as image:
        exact = image.size == (image_size, image_size) and image.mode == MODES[channels]
        if exact and "transparency" not in image.info:
            pixels = np.asarray(image).reshape(image_size, image_size, channels)
            return pixels.transpose(2, 0, 1)
    return decode_image(data, image_size, channels, rules=rules)


def look(image: Image.Image) -> int:
    """Difference hash: which of 8x8 cells are brighter than their right neighbour. Nearly equal images differ in few
    bits; 0 for images without structure."""
    cells = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    bits = np.packbits((cells[:, :-1] > cells[:, 1:]).reshape(-1))
    return int.from_bytes(bits.tobytes(), "big")


def _sums(image: Image.Image) -> NDArray[np.int64]:
    """Exact sums of values and of squares per channel, by histogram."""
    assert image.width * image.height <= MAX_PIXELS
    counts = np.array(image.histogram(), dtype=np.int64).reshape(-1, 256)
    values = np.arange(256, dtype=np.int64)
    return np.stack([counts @ values, counts @ values**2])
