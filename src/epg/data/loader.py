"""Global batches in a fixed order, whatever the number of processes, micro-batches and workers."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from epg.data.base import CachedDataset, ImageDataset
from epg.errors import DataError, UserError

Task = tuple[int, NDArray[np.int64]]  # position inside the global batch, dataset indices


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
        """Copy to a device, without waiting where the memory is pinned."""
        images, labels, indices = (
            tensor.to(device, non_blocking=True) for tensor in (self.images, self.labels, self.indices)
        )
        return Batch(images, labels, indices, self.first)

    def pin_memory(self) -> "Batch":
        """Copy to page-locked memory; DataLoader calls this by name."""
        return Batch(self.images.pin_memory(), self.labels.pin_memory(), self.indices.pin_memory(), self.first)


class BatchLoader:
    """An endless stream of steps; each is this rank's list of micro-batches of that step's global batch.

    Position j of step s is position `s * batch_size + j` of the stream that `dataset.order` defines; rank r owns the
    r-th of `world_size` equal slices, cut in order into micro-batches (default: one). `workers` decode in the
    background, except for a CachedDataset, which is indexed directly. Raises UserError where the sizes do not
    divide, DataError for broken images and for a worker that died or gave nothing for `timeout_s` seconds.
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
        self.order = dataset.order(seed)
        self.batch_size = batch_size
        self.start_step = start_step
        self.micro_batch = micro_batch
        self.firsts = range(rank * share, (rank + 1) * share, micro_batch)
        self.workers = 0 if isinstance(dataset, CachedDataset) else workers
        self.pin_memory = pin_memory and torch.cuda.is_available()
        self.timeout_s = timeout_s

    def plan(self, step: int) -> list[Task]:
        """(first, dataset indices) of this rank's micro-batches of a step."""
        return [
            (first, self.order.indices(step * self.batch_size + first + np.arange(self.micro_batch)))
            for first in self.firsts
        ]

    def __iter__(self) -> Iterator[list[Batch]]:
        if self.workers > 0:
            yield from self._iterate_with_workers()
        for step in count(self.start_step):
            batches = [_read(self.dataset, task) for task in self.plan(step)]
            yield [batch.pin_memory() for batch in batches] if self.pin_memory else batches

    def _iterate_with_workers(self) -> Iterator[list[Batch]]:
        # The stream never ends, so one iterator (and its workers) lasts as long as the run.
        loader: DataLoader[Any] = DataLoader(
            _TaskDataset(self.dataset),
            batch_size=None,
            sampler=_TaskStream(self),
            num_workers=self.workers,
            pin_memory=self.pin_memory,
            timeout=self.timeout_s,
            generator=torch.Generator(),  # else it would draw the workers' seed from the global generator
        )
        stream = iter(loader)
        for step in count(self.start_step):
            yield [self._next(stream, step) for _ in self.firsts]

    def _next(self, stream: Iterator[Any], step: int) -> Batch:
        try:
            result = next(stream)
        except RuntimeError as error:
            sample = self.dataset.describe(int(self.plan(step)[0][1][0]))
            raise DataError(
                f"loading step {step} (from {sample}) failed: {error}. If memory ran out or storage is slow, lower "
                "--data.workers"
            ) from error
        if isinstance(result, UserError):
            raise result
        assert isinstance(result, Batch)
        return result


def _read(dataset: ImageDataset, task: Task) -> Batch:
    first, indices = task
    if isinstance(dataset, CachedDataset):
        images = dataset.images[torch.from_numpy(indices)]
    else:
        images = _allocate((len(indices), dataset.channels, dataset.image_size, dataset.image_size))
        pixels = images.numpy()
        for place, index in enumerate(indices):
            pixels[place] = dataset[int(index)][0]
    return Batch(images, torch.from_numpy(dataset.labels[indices]), torch.from_numpy(indices), first)


def _allocate(shape: tuple[int, ...]) -> Tensor:
    """An uninitialised uint8 tensor; in a worker in shared memory at once, or sending it would copy it there."""
    if torch.utils.data.get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    storage = torch.UntypedStorage._new_shared(math.prod(shape))  # what torch's own collate function does
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)


class _TaskStream:
    """The endless sequence of tasks, as a sampler."""

    def __init__(self, loader: BatchLoader) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Task]:
        for step in count(self.loader.start_step):
            yield from self.loader.plan(step)


class _TaskDataset(Dataset[Batch | UserError]):
    """What a worker does. Our own errors travel as values: DataLoader would bury their message in a traceback."""

    def __init__(self, dataset: ImageDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, task: Task) -> Batch | UserError:
        try:
            return _read(self.dataset, task)
        except UserError as error:
            return type(error)(str(error))
