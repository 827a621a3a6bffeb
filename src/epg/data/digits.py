"""Scikit-learn's handwritten digits: 1797 real 8x8 images that come with the library."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from epg.data.base import ImageDataset, NoSplitError
from epg.data.order import EpochOrder

TEST_FRACTION = 0.2


class DigitsDataset(ImageDataset):
    """Handwritten digits with a fixed stratified split ("train" or "test", 20 %).

    Images are scaled with Pillow when `image_size` is not 8. Raises NoSplitError for any other split.
    """

    def __init__(self, *, image_size: int, channels: int, split: str) -> None:
        from sklearn.datasets import load_digits

        if split not in ("train", "test"):
            raise NoSplitError(f"the digits have no {split!r} split: choose 'train' or 'test'")
        source = load_digits()
        chosen = _split(source.target, test=split == "test")
        super().__init__(source.target[chosen].astype(np.int64), tuple("0123456789"), image_size, channels)
        self.indices = chosen
        self.pixels = np.round(source.images[chosen] * (255 / 16)).astype(np.uint8)  # (N, 8, 8)
        self.split = split

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], int]:
        pixels, size = self.pixels[index], self.image_size
        if size != pixels.shape[0]:
            method = Image.Resampling.BICUBIC if size > pixels.shape[0] else Image.Resampling.BOX
            pixels = np.asarray(Image.fromarray(pixels).resize((size, size), method))
        return np.repeat(pixels[None], self.channels, axis=0), int(self.labels[index])

    def describe(self, index: int) -> str:
        return f"digits image {self.indices[index]}"

    def fingerprint(self) -> str:
        return self._digest("digits", [self.pixels.tobytes(), self.labels.tobytes()])


def _split(labels: NDArray[np.int64], test: bool) -> NDArray[np.int64]:
    """Sorted indices of one side of the split; our own permutation, which no library update can change."""
    chosen = []
    for label in range(10):
        members = np.flatnonzero(labels == label)
        members = members[EpochOrder(len(members), seed=label).indices(np.arange(len(members)))]
        cut = round(TEST_FRACTION * len(members))
        chosen.append(members[:cut] if test else members[cut:])
    return np.sort(np.concatenate(chosen))
