"""Images to measure with where a recipe's own are not at hand."""

import numpy as np
from numpy.typing import NDArray

from epg.config.settings import RunConfig
from epg.data.loading.base import ImageDataset


class RandomImages(ImageDataset):
    """Random pixels and labels, of the sizes and classes of a configuration; ten classes where the data decide."""

    def __init__(self, config: RunConfig, count: int) -> None:
        random, data = np.random.default_rng(0), config.data
        classes = 10 if config.model.num_classes is None else config.model.num_classes
        labels = random.integers(classes, size=count) if classes else np.full(count, -1)
        super().__init__(labels, tuple(map(str, range(classes))), data.image_size, data.channels)
        shape = (count, data.channels, data.image_size, data.image_size)
        self.pixels = random.integers(256, size=shape, dtype=np.uint8)

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], int]:
        return self.pixels[index], int(self.labels[index])

    def describe(self, index: int) -> str:
        return f"random image {index}"

    def fingerprint(self) -> str:
        return self._digest("random", [])
