"""Memory that decoding processes write and training reads in place."""

import math
import mmap
import os
import tempfile
import weakref
from collections import deque
from multiprocessing.reduction import DupFd
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

PAGE = 4096
NONE = -1


class SharedMemory:
    """`size` bytes that this process and those it starts have in common, freed with the last of them.

    It does not lie in /dev/shm: containers limit that to 64 MB, and whoever exceeds it is killed without a word.
    """

    def __init__(self, size: int) -> None:
        descriptor = os.memfd_create("epg-batches") if hasattr(os, "memfd_create") else _unnamed_file()
        os.ftruncate(descriptor, size)
        self._map(descriptor, size)

    def _map(self, descriptor: int, size: int) -> None:
        self.descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)
        self.bytes: NDArray[np.uint8] = np.frombuffer(mmap.mmap(descriptor, size), np.uint8)

    def __getstate__(self) -> tuple[Any, int]:
        return DupFd(self.descriptor), len(self.bytes)

    def __setstate__(self, state: tuple[Any, int]) -> None:
        self._map(state[0].detach(), state[1])


def _unnamed_file() -> int:
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class Ring:
    """Slots for batches of `shape` (N, H, W, C) uint8, used again and again, and what every worker is doing.

    Reuse is the point: the first touch of a page of new memory costs more than the copy into it. A slot that was lent
    is free again when no tensor refers to its memory any more, so a batch is never overwritten while it is in use.
    """

    def __init__(self, slots: int, shape: tuple[int, int, int, int], workers: int) -> None:
        self.shape = shape
        self.head = -(-16 * workers // PAGE) * PAGE
        self.memory = SharedMemory(self.head + slots * math.prod(shape))
        self.free = deque(range(slots))

    def progress(self, worker: int) -> NDArray[np.int64]:
        """(2,) int64, written by the worker: images begun so far, and the one in work."""
        return self.memory.bytes[16 * worker : 16 * worker + 16].view(np.int64)

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
        return self.memory.bytes[self.head + slot * size :][:size].reshape(self.shape)
