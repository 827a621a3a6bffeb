"""Memory that decoding processes write and training reads in place."""

import math
import weakref
from collections import deque

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from epg.data.workers.crew import SharedMemory


class Ring:
    """Slots for batches of `shape` (N, H, W, C) uint8, used again and again.

    Reuse is the point: the first touch of a page of new memory costs more than the copy into it. A slot that was lent
    is free again when no tensor refers to its memory any more, so a batch is never overwritten while it is in use.
    """

    def __init__(self, slots: int, shape: tuple[int, int, int, int]) -> None:
        self.shape = shape
        self.memory = SharedMemory(slots * math.prod(shape))
        self.free = deque(range(slots))

    def pixels(self, slot: int) -> NDArray[np.uint8]:
        """The memory of a slot as (N, C, H, W). The channels of a pixel lie together, as decoders leave them."""
        return self._slot(slot).transpose(0, 3, 1, 2)

    def lend(self, slot: int) -> Tensor:
        """A slot as a tensor (N, C, H, W) without a copy; the slot is free again when the last view of it is gone."""
        pixels = self._slot(slot)
        weakref.finalize(pixels, self.free.append, slot).atexit = False
        return torch.from_numpy(pixels).permute(0, 3, 1, 2)

    def copy(self, slot: int) -> Tensor:
        """The same in memory of its own; the slot is free at once."""
        result = torch.from_numpy(self._slot(slot)).clone().permute(0, 3, 1, 2)
        self.free.append(slot)
        return result

    def _slot(self, slot: int) -> NDArray[np.uint8]:
        size = math.prod(self.shape)
        return self.memory.bytes[slot * size :][:size].reshape(self.shape)
