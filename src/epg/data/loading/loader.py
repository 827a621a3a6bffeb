"""Global batches in a fixed order, whatever the number of processes, micro-batches and workers."""

import warnings
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from epg.data.loading.base import CachedDataset, ImageDataset, Order, refuse_damaged
from epg.data.workers.crew import Begin, Call, Crew, Lost
from epg.data.workers.ring import Ring
from epg.errors import DataError, UserError

TRIES = 64  # replacements that may be damaged too
CHUNK = 32  # images per task: several workers share a batch, and the first one is there soon

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


@dataclass(frozen=True)
class Batch:
    """A run of consecutive samples of one global batch."""

    images: Tensor  # (N, C, H, W) uint8
    labels: Tensor  # (N,) int64, -1 where there are no labels
    indices: Tensor  # (N,) int64, which samples of the data set these are
    first: int  # position of the first sample inside the global batch

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str) -> "Batch":
        """Copy to a device, without waiting where the memory is pinned; there, the images are contiguous. The indices,
        of which only the host speaks, stay."""
        images, labels = (tensor.to(device, non_blocking=True) for tensor in (self.images, self.labels))
        return Batch(images.contiguous(), labels, self.indices, self.first)

    def pin_memory(self) -> "Batch":
        """Copy of images and labels to page-locked memory."""
        return Batch(self.images.pin_memory(), self.labels.pin_memory(), self.indices, self.first)


class BatchLoader:
    """An endless stream of steps; each is this rank's list of micro-batches of that step's global batch.

    Position j of step s is position `s * batch_size + j` of the stream that `dataset.order` defines; rank r owns the
    r-th of `world_size` equal slices, cut in order into micro-batches (default: one). `workers` decode in the
    background, except for a CachedDataset, which is indexed directly. A batch belongs to whoever receives it.

    Args:
        max_damaged: images that cannot be read before the stream ends with a DataError; up to there each is replaced
            by another (see `Reader`), named in a warning and kept in `damaged`.
        timeout_s: seconds that one image may take a worker.

    Raises UserError where the sizes do not divide, DataError for damaged images and for a worker that died or hangs.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        *,
        batch_size: int,
        seed: int,
        start_step: int = 0,
        rank: int = 0,
        world_size: int = 1,
        micro_batch: int | None = None,
        workers: int = 0,
        pin_memory: bool = False,
        max_damaged: int = 0,
        timeout_s: float = 120.0,
    ) -> None:
        assert 0 <= rank < world_size, (rank, world_size)
        assert start_step >= 0, start_step
        if batch_size < 1 or batch_size % world_size:
            raise UserError(f"--training.batch-size {batch_size}: must be a multiple of the {world_size} processes")
        share = batch_size // world_size
        micro_batch = share if micro_batch is None else micro_batch
        if micro_batch < 1 or share % micro_batch:
            raise UserError(
                f"--training.micro-batch {micro_batch}: must divide the {share} samples that each process has of "
                f"--training.batch-size {batch_size}"
            )
        self.dataset = dataset
        self.reader = Reader(dataset, dataset.order(seed), replace=max_damaged > 0)
        self.batch_size = batch_size
        self.start_step = start_step
        self.shape = (micro_batch, dataset.image_size, dataset.image_size, dataset.channels)
        self.firsts = range(rank * share, (rank + 1) * share, micro_batch)
        self.workers = 0 if isinstance(dataset, CachedDataset) else workers
        self.pin_memory = pin_memory and torch.cuda.is_available()
        self.max_damaged = max_damaged
        self.timeout_s = timeout_s
        self.damaged: dict[int, str] = {}
        # Batches in work: a step, or enough to keep the workers busy. Lent: a step, asked for while its predecessor is
        # still held.
        self.ahead = 1 + max(len(self.firsts), -(-2 * self.workers * CHUNK // micro_batch))
        self.slots = self.ahead + 2 * len(self.firsts)

    def __iter__(self) -> Iterator[list[Batch]]:
        batches = self._read_ahead() if self.workers else self._read_now()
        while True:
            yield [next(batches) for _ in self.firsts]

    def _positions(self) -> Iterator[tuple[int, int]]:
        """(first, position in the stream) of this rank's micro-batches."""
        for step in count(self.start_step):
            for first in self.firsts:
                yield first, step * self.batch_size + first

    def _read_now(self) -> Iterator[Batch]:
        for first, position in self._positions():
            if isinstance(self.dataset, CachedDataset) and not self.dataset.damaged:
                indices = self.reader.order.indices(position + np.arange(self.shape[0]))
                yield self._batch(self.dataset.images[torch.from_numpy(indices)], first, indices)
                continue
            images = torch.empty(self.shape, dtype=torch.uint8).permute(0, 3, 1, 2)
            yield self._batch(images, first, *self.reader.read(position, images.numpy()))

    def _read_ahead(self) -> Iterator[Batch]:
        """The same from workers."""
        ring = Ring(self.slots, self.shape)
        crew = Crew(partial(_fill, self.reader, ring), self.workers, self.timeout_s)
        positions, pending = self._positions(), deque[tuple[int, int, list[Call]]]()
        try:
            while True:
                while ring.free:
                    slot, (first, position) = ring.free.popleft(), next(positions)
                    parts = range(0, self.shape[0], CHUNK)
                    calls = [crew.send((slot, place, position + place)) for place in parts]
                    pending.append((slot, first, calls))
                slot, first, calls = pending.popleft()
                while not all(call.done for call in calls):
                    crew.listen()
                indices, damaged = zip(*(call.result() for call in calls), strict=True)
                hoarded = len(ring.free) + len(pending) < self.ahead
                images = ring.copy(slot) if hoarded else ring.lend(slot)
                yield self._batch(images, first, np.concatenate(indices), *damaged)
        except Lost as lost:
            raise self._lost(lost) from None
        finally:
            crew.close()

    def _lost(self, lost: Lost) -> DataError:
        at = "before its first image" if lost.image is None else f"at {self.dataset.describe(lost.image)}"
        if lost.hangs:
            return DataError(
                f"loader process {lost.worker} hangs {at}: {lost}. If storage is that slow, raise --data.timeout or "
                "lower --data.workers"
            )
        return DataError(
            f"loader process {lost.worker} died ({lost}) {at}. If memory ran out, lower --data.workers; if it happens "
            "again at this image, remove it"
        )

    def _batch(self, images: Tensor, first: int, indices: NDArray[np.int64], *damaged: Damaged) -> Batch:
        for index, message in (item for part in damaged for item in part.items()):
            if index not in self.damaged:
                self.damaged[index] = message
                number = len(self.damaged)
                refuse_damaged(message, number, self.max_damaged)
                text = f"{message.rstrip('.')}. Another takes its place ({number} of {self.max_damaged} allowed)"
                warnings.warn(text, stacklevel=2)
        batch = Batch(images, torch.from_numpy(self.dataset.labels[indices]), torch.from_numpy(indices), first)
        return batch.pin_memory() if self.pin_memory else batch


def _fill(reader: Reader, ring: Ring, task: tuple[int, int, int], begin: Begin) -> Any:
    """What a worker does: part of a slot, from a place on, with the samples at a position."""
    if torch.get_num_threads() != 1:  # setting it is dear
        torch.set_num_threads(1)
    slot, place, position = task
    return reader.read(position, ring.pixels(slot)[place : place + CHUNK], begin)
