"""Scikit-learn's handwritten digits: 1797 real 8x8 images that come with the library."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from epg.data.order import EpochOrder
from epg.data.pixels.plain import encoded
from epg.data.sources.base import Images, Labelled, Overview, Source, SourceOptions
from epg.data.sources.labels import unlabelled
from epg.data.sources.names import Names
from epg.data.sources.splits import NoSplitError, check_split
from epg.errors import UserError

TEST_FRACTION = 0.2


class DigitsSource(Source):
    """Handwritten digits with a fixed stratified split ("train" or "test", 20 %).

    Raises NoSplitError for any other split.
    """

    def __init__(self, options: SourceOptions) -> None:
        flags = [options.flag(f"{n}-column") for n in ("image", "label") if getattr(options, f"{n}_column") is not None]
        if flags:
            raise UserError(f"{' and '.join(flags)} can only be used with tables and label files, not with digits")
        check_split(options.split)
        if options.split not in ("train", "test"):
            raise NoSplitError(f"the digits have no {options.split!r} split: choose 'train' or 'test'")
        images, digits = _stored()
        self.indices = _split(digits, test=options.split == "test")
        self.pixels = np.round(images[self.indices] * (255 / 16)).astype(np.uint8)  # (N, 8, 8)
        count = len(self.indices)
        labels = digits[self.indices], tuple("0123456789")
        names = Names.of([b"image %d" % index for index in self.indices])
        overview = Overview(f"split {options.split}: every fifth image of each digit is for testing; labels: the digit")
        labelled: Labelled = unlabelled(count) if options.labels == "none" else labels
        super().__init__("digits", "digits", Images(names, np.full(count, 64, np.int64), *labelled, overview))

    def read(self, index: int) -> bytes:
        return encoded(self.pixels[index])

    def identity(self) -> tuple[str, Iterator[bytes]]:
        return "digits", iter([self.pixels.tobytes(), self.labels.tobytes()])


def open_digits(address: str, options: SourceOptions) -> Source | None:
    return DigitsSource(options) if address == "digits" else None


def _stored() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Values (1797, 8, 8) from 0 to 16, and the digits, as `sklearn.datasets.load_digits` reads them.

    Importing that takes more than a second, for a table whose file has been the same for ten years.
    """
    spec = importlib.util.find_spec("sklearn")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    file = Path(spec.submodule_search_locations[0], "datasets", "data", "digits.csv.gz")
    table = np.loadtxt(file, delimiter=",")
    return table[:, :64].reshape(-1, 8, 8), table[:, 64].astype(np.int64)


def _split(labels: NDArray[np.int64], test: bool) -> NDArray[np.int64]:
    """Sorted indices of one side of the split; our own permutation, which no library update can change."""
    chosen = []
    for label in range(10):
        members = np.flatnonzero(labels == label)
        members = members[EpochOrder(len(members), seed=label).indices(np.arange(len(members)))]
        cut = round(TEST_FRACTION * len(members))
        chosen.append(members[:cut] if test else members[cut:])
    return np.sort(np.concatenate(chosen))
