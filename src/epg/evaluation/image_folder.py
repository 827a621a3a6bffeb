"""A folder of images as they are: nothing is resized, because that would be judged along."""

import contextlib
import warnings as python_warnings
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from epg.data.decode import look_at, open_flat
from epg.data.sources.base import SourceOptions
from epg.data.sources.files import FolderSource as Listing
from epg.errors import ArtefactError, DataError
from epg.storage.artefact import read_json

NOT_SAMPLES = {"grid.png"}  # what `epg sample` writes beside the images
RECORD = "samples.json"
DECODERS = 4  # threads
JPEG = (".jpg", ".jpeg")


class ImageFolder:
    """Image files, in the order of their names; sub-folders are classes, by their names.

    Raises DataError for a folder without images, and on reading one that has another size or mixes grey and colour.
    """

    def __init__(self, path: Path, count: int | None = None) -> None:
        listing = Listing(path, SourceOptions())
        kept = [i for i in range(len(listing)) if listing.path(i).name not in NOT_SAMPLES][:count]
        if not kept:
            raise DataError(f"{path}: holds no images besides {', '.join(NOT_SAMPLES)}")
        self.path, self.files = path, [listing.path(i) for i in kept]
        self.class_names = listing.class_names
        self.labels = torch.from_numpy(listing.labels[kept]) if listing.class_names else None
        self.shape = _look(self.files[0])

    @property
    def count(self) -> int:
        return len(self.files)

    @cached_property
    def warnings(self) -> list[str]:
        jpeg = sum(file.name.lower().endswith(JPEG) for file in self.files)
        if not jpeg:
            return []
        mixed = f"; the other {self.count - jpeg} are not" if jpeg < self.count else ""
        return [
            f"{jpeg} of the samples are JPEG files{mixed}: its artefacts change every metric. Save samples losslessly, "
            "as PNG or .npz"
        ]

    def read(self, start: int, stop: int) -> Tensor:
        with ThreadPoolExecutor(DECODERS) as pool:
            return torch.stack(list(pool.map(self._decode, self.files[start:stop])))

    def _decode(self, file: Path) -> Tensor:
        shape = _look(file)
        if shape != self.shape:
            raise DataError(
                f"{file}: {_words(shape)}, but {self.files[0].name} is {_words(self.shape)}. The samples of one "
                "evaluation have one size; nothing is resized here."
            )
        channels, height, width = shape
        try:
            pixels = np.array(open_flat(file, channels)[0], dtype=np.uint8).reshape(height, width, channels)
        except Exception as error:  # decoders meet arbitrary bytes and raise nearly every exception class there is
            raise DataError(f"{file}: cannot decode this image ({error})") from error
        return torch.from_numpy(pixels).permute(2, 0, 1)

    def describe(self) -> dict[str, Any]:
        described: dict[str, Any] = {"kind": "folder", "name": self.path.name}
        if record := recorded(self.path):
            described["record"] = record
        return described


def recorded(folder: Path) -> dict[str, Any]:
    """What `epg sample` wrote down of the samples in a folder; empty where it did not."""
    with contextlib.suppress(ArtefactError):
        return read_json(folder / RECORD)[0]
    return {}


def trained_in(folder: Path) -> tuple[str, ...]:
    """Of the generator of the samples in a folder, see `Trained.trained_in`."""
    found = recorded(folder).get("trained_in")
    return tuple(map(str, found)) if isinstance(found, list) else ()


def _look(file: Path) -> tuple[int, int, int]:
    """(channels, height, width) once upright; without decoding."""
    try:
        with python_warnings.catch_warnings():
            python_warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `look_at` has limits
            return look_at(file)
    except (OSError, ValueError, DataError, Image.DecompressionBombError) as error:
        raise DataError(f"{file}: no image ({error})") from error


def _words(shape: tuple[int, int, int]) -> str:
    return f"{shape[2]}x{shape[1]} {'grey' if shape[0] == 1 else 'colour'}"
