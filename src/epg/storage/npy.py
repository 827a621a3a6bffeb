"""The head of an array in numpy's format, believed only where what it claims is there."""

import math
from dataclasses import dataclass
from typing import IO, Any

import numpy as np


@dataclass(frozen=True)
class Header:
    """Shape and type of an array, and where its numbers begin."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    offset: int
    """Of the numbers, from the beginning of the array's file or entry."""


def read_header(stream: IO[bytes], size: int) -> Header:
    """The head of an array whose file, or entry of an archive, has `size` bytes; `stream` is at its beginning.

    Raises ValueError for Python objects, another version of the format, and an array that is not as long as it says.
    """
    version = np.lib.format.read_magic(stream)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in read:
        raise ValueError(f"npy format {version}")
    shape, fortran, dtype = read[version](stream)
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    offset = stream.tell()
    if any(n < 0 for n in shape) or offset + math.prod(shape) * dtype.itemsize != size:
        raise ValueError("it is not as long as its header says; the file is damaged")
    return Header(shape, dtype, fortran, offset)
