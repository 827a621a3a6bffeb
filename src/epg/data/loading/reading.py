"""Reading the samples at positions of the stream, with others in the place of damaged ones."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from epg.data.loading.base import ImageDataset, Order
from epg.errors import DataError, UserError

TRIES = 64  # replacements that may be damaged too


Damaged = dict[int, str]
"""Samples that could not be read, and why."""


@dataclass(frozen=True)
class Reader:
    """The samples of `dataset` in `order`; with `replace`, damaged ones are replaced.

    In the place of a damaged sample comes the one at the same place of the next epoch (or of the one after that, if it
    is damaged as well): a function of the position like everything else, whoever reads it and whenever.
    """

    dataset: ImageDataset
    order: Order
    replace: bool = False

    def read(
        self, position: int, pixels: NDArray[np.uint8], begin: Callable[[int], None] = lambda index: None
    ) -> tuple[NDArray[np.int64], Damaged]:
        """Read the samples at `position` and the following ones into `pixels` (N, C, H, W); returns which (N,) were.

        `begin` hears of every sample before it is read. Raises DataError for one that cannot be read or
        replaced, UserError where memory runs out.
        """
        indices = self.order.indices(position + np.arange(len(pixels)))
        damaged: Damaged = {}
        for place in range(len(pixels)):
            try:
                pixels[place] = self._read(int(indices[place]), begin)
            except DataError as error:
                if not self.replace:
                    raise
                damaged[int(indices[place])] = str(error)
                indices[place], pixels[place] = self._replacement(position + place, damaged, begin)
        return indices, damaged

    def _read(self, index: int, begin: Callable[[int], None]) -> NDArray[np.uint8]:
        begin(index)
        try:
            return self.dataset[index][0]
        except MemoryError as error:
            raise UserError(  # no DataError: nothing is wrong with the image
                f"{self.dataset.describe(index)}: there is not enough memory to read it; lower --data.workers or "
                "--training.micro-batch"
            ) from error

    def _replacement(
        self, position: int, damaged: Damaged, begin: Callable[[int], None]
    ) -> tuple[int, NDArray[np.uint8]]:
        for epoch in range(1, TRIES + 1):
            index = int(self.order.indices(np.array([position + epoch * len(self.dataset)]))[0])
            try:
                return index, self._read(index, begin)
            except DataError as error:
                damaged[index] = str(error)
        raise DataError(f"{next(iter(damaged.values()))} ({TRIES} images that could replace it are damaged as well)")
