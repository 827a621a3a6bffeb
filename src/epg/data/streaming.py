"""The order of images that are far away, in an object store or on the Hub: shuffled only approximately."""

import numpy as np
from numpy.typing import NDArray

from epg.data.order import GOLDEN, EpochOrder, mix64
from epg.errors import DataError

BLOCK = 128
WINDOW = 16


class BlockOrder:
    """An endless stream that visits every sample once per epoch, reading runs of neighbours.

    The samples are cut into blocks of `block`; blocks are permuted by (seed, epoch), and samples are permuted within
    every `window` blocks that follow each other. That is the shuffling of a buffer of `window * block` samples, but a
    pure function of the position: it resumes exactly and needs no memory. A last, shorter block always comes last.
    """

    def __init__(self, length: int, seed: int, block: int = BLOCK, window: int = WINDOW) -> None:
        if length < 1:
            raise DataError("a data set must have at least one image")
        self.length, self.seed, self.block, self.window = length, seed, block, window
        self.full = length // block
        self.blocks = EpochOrder(max(1, self.full), seed)

    def indices(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Dataset indices (same shape, int64) at `positions` >= 0 of the endless stream."""
        flat = np.asarray(positions, dtype=np.int64).reshape(-1)
        epochs, offsets = np.divmod(flat, np.int64(self.length))
        last_group = max(0, (self.full - 1) // self.window)  # it has the short block too
        groups = np.minimum(offsets // (self.block * self.window), last_group)
        result = np.empty_like(flat)
        for epoch, group in {(int(e), int(g)) for e, g in zip(epochs, groups, strict=True)}:
            here = (epochs == epoch) & (groups == group)
            start = group * self.block * self.window
            size = (self.length if group == last_group else start + self.block * self.window) - start
            local = EpochOrder(size, self._key(epoch, group)).indices(offsets[here] - start)
            place = start + local
            moved = place < self.full * self.block
            place[moved] = self._move(epoch, place[moved])
            result[here] = place
        return result.reshape(np.shape(positions))

    def _move(self, epoch: int, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """The samples at `places` once blocks are permuted."""
        blocks, inner = np.divmod(places, np.int64(self.block))
        return self.blocks.indices(epoch * self.full + blocks) * self.block + inner

    def _key(self, epoch: int, group: int) -> int:
        words = [int(GOLDEN) * (value + 1) % 2**64 for value in (self.seed, epoch, group)]
        key = np.zeros(1, np.uint64)
        for word in words:
            key = mix64(key ^ np.uint64(word))
        return int(key[0])
