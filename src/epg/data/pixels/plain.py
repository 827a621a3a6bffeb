"""Images that are arrays already, as files in memory, and back."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def encoded(pixels: NDArray[np.uint8]) -> bytes:
    """An image file (PGM, PPM, or PNG with transparency) of pixels (H, W) or (H, W, C)."""
    height, width = pixels.shape[:2]
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    if channels in (1, 3):
        return _head(height, width, channels) + pixels.tobytes()
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(stream, "PNG", compress_level=0)
    return stream.getvalue()


def decoded(file: bytes, size: int, channels: int) -> NDArray[np.uint8] | None:
    """The pixels (size, size, channels) of such a file of that very shape, with which nothing is left to do; else None.

    The same as decoding it, in a tenth of the time.
    """
    head = _head(size, size, channels)
    if not file.startswith(head) or len(file) != len(head) + size * size * channels:
        return None
    return np.frombuffer(file, np.uint8, offset=len(head)).reshape(size, size, channels)


def _head(height: int, width: int, channels: int) -> bytes:
    return b"P%d\n%d %d\n255\n" % (6 if channels == 3 else 5, width, height)
