"""ADM's `.npz`: images as arr_0 (N, H, W, C) uint8, labels as arr_1; statistics as mu, sigma, mu_s, sigma_s.

Arrays are read in parts straight from the archive, so that 50,000 images at 256x256 (9.8 GB) need no memory, and
headers are checked before anything is believed. Pickled objects are refused.
"""

import math
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from epg.errors import DataError
from epg.storage.npy import Header, read_header
from epg.storage.plain_file import open_plain

MAX_SIDE, MAX_IMAGES, MAX_WIDTH = 4096, 10_000_000, 8192
ARCHIVE_ERRORS = (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError)


class Npz:
    """What an archive holds. Raises DataError for anything else."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open_plain(path) as raw, zipfile.ZipFile(raw) as archive:
                self.sizes = {info.filename: info.file_size for info in archive.infolist()}
        except ARCHIVE_ERRORS as error:
            raise DataError(f"{path}: not an .npz archive ({error})") from error

    def __contains__(self, name: str) -> bool:
        return f"{name}.npy" in self.sizes

    @cached_property
    def names(self) -> list[str]:
        return [file.removesuffix(".npy") for file in self.sizes]

    @contextmanager
    def entry(self, name: str) -> Iterator[IO[bytes]]:
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(f"{name}.npy") as stream:
                yield stream
        except ARCHIVE_ERRORS as error:
            raise DataError(f"{self.path}: {name} cannot be read ({error})") from error

    def header(self, name: str) -> Header:
        """Shape, type and place of an array, which must be as long as its header says."""
        with self.entry(name) as stream:
            header = read_header(stream, self.sizes[f"{name}.npy"])
            if header.fortran or header.dtype.kind not in "biuf":
                raise ValueError("only plain arrays of numbers in C order are read; save them with np.savez")
        return header

    def small(self, name: str, limit: tuple[int, ...]) -> NDArray[Any]:
        """A whole array with at most `limit` entries per dimension."""
        header = self.header(name)
        if len(header.shape) != len(limit) or any(n > most for n, most in zip(header.shape, limit, strict=True)):
            raise DataError(f"{self.path}: {name} has shape {header.shape}; at most {limit} is expected")
        with self.entry(name) as stream:
            stream.seek(header.offset)
            data = stream.read(math.prod(header.shape) * header.dtype.itemsize)
        return np.frombuffer(data, header.dtype).reshape(header.shape)


class NpzSource:
    """The images of an archive. Raises DataError where they are not uint8 (N, H, W, 1 or 3)."""

    def __init__(self, path: Path, count: int | None = None) -> None:
        self.npz, self.path = Npz(path), path
        self._stream: IO[bytes] | None = None
        if "arr_0" not in self.npz:
            raise DataError(
                f"{path}: no images: arr_0 is missing; it holds {', '.join(self.npz.names[:8]) or 'nothing'}"
            )
        self.header = self.npz.header("arr_0")
        shape, dtype = self.header.shape, self.header.dtype
        if len(shape) != 4 or shape[3] not in (1, 3) or dtype != np.uint8:
            raise DataError(
                f"{path}: arr_0 is {dtype} {shape}; uint8 (N, height, width, 3) is expected, as ADM's evaluator reads"
            )
        if not (0 < shape[0] <= MAX_IMAGES and 0 < shape[1] <= MAX_SIDE and 0 < shape[2] <= MAX_SIDE):
            raise DataError(f"{path}: arr_0 {shape}: no images, or larger than {MAX_SIDE}x{MAX_SIDE}")
        self.count = shape[0] if count is None else min(count, shape[0])
        self.shape = (shape[3], shape[1], shape[2])

    @property
    def class_names(self) -> tuple[str, ...]:
        return ()  # only numbers

    @cached_property
    def labels(self) -> Tensor | None:
        if "arr_1" not in self.npz:
            return None
        labels = self.npz.small("arr_1", (MAX_IMAGES,))
        if labels.dtype.kind not in "iu" or len(labels) != self.header.shape[0]:
            raise DataError(f"{self.path}: arr_1 must hold one whole number for each image of arr_0")
        return torch.from_numpy(labels.astype(np.int64))[: self.count]

    def read(self, start: int, stop: int) -> Tensor:
        channels, height, width = self.shape
        size = height * width * channels
        try:
            data = self._forward_to(self.header.offset + start * size).read((stop - start) * size)
            if len(data) < (stop - start) * size:
                raise EOFError("it ends early")
        except ARCHIVE_ERRORS as error:
            raise DataError(f"{self.path}: arr_0 cannot be read ({error})") from error
        images = np.frombuffer(data, np.uint8).reshape(-1, height, width, channels)
        return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())

    def _forward_to(self, offset: int) -> IO[bytes]:
        """The entry at this place. It stays open: an archive is read from front to back, once."""
        if self._stream is None or self._stream.tell() > offset:
            self._stream = zipfile.ZipFile(self.path).open("arr_0.npy")  # noqa: SIM115
        self._stream.seek(offset)
        return self._stream

    def describe(self) -> dict[str, Any]:
        return {"kind": "npz", "name": self.path.name}
