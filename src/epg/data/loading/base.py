"""What every source of images offers, and the in-memory copy of a small one."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from epg.data.order import BalancedOrder, EpochOrder
from epg.data.sources.base import digest_of
from epg.data.sources.classes import classes_line, renumbered
from epg.data.sources.splits import NoSplitError as NoSplitError
from epg.errors import DataError


class Order(Protocol):
    """Which sample comes at a position of the endless stream."""

    def indices(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Dataset indices (same shape, int64) at `positions` >= 0."""
        ...


class ImageDataset(Dataset[tuple[NDArray[np.uint8], int]], ABC):
    """Map-style images of one size, with labels or without.

    `class_names` is empty and every label is -1 when the source has no labels. With `balanced` set, training visits
    every class equally often.
    """

    balanced: bool = False

    def __init__(self, labels: NDArray[np.int64], class_names: tuple[str, ...], image_size: int, channels: int) -> None:
        self.labels = labels  # (N,) int64
        self.class_names = class_names
        self.image_size = image_size
        self.channels = channels

    def __len__(self) -> int:
        return len(self.labels)

    def class_counts(self, num_classes: int = 0) -> list[int]:
        """Images of each class, of at least `num_classes` of them; empty without labels."""
        if not self.class_names:
            return []
        return np.bincount(self.labels, minlength=max(num_classes, self.num_classes)).tolist()

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def follow(self, class_names: tuple[str, ...], whose: str) -> None:
        """Number the classes as another data set does, by their names.

        Raises DataError for a class that the other one does not have.
        """
        if self.class_names and self.class_names != class_names:
            self.labels = renumbered(self.labels, self.class_names, class_names, whose)
            self.class_names = class_names

    def report(self, prefix: str = "--data.") -> list[str]:
        """What these images are, for people to read: classes with their counts first; `prefix` is of flags."""
        return [classes_line(self.class_names, self.class_counts())]

    def treatment(self, prefix: str = "--data.") -> list[str]:
        """What decoding does to images that are not prepared, for people to read; `prefix` is of flags."""
        return []

    def order(self, seed: int) -> Order:
        """The order in which training visits the images. Raises DataError for an empty set."""
        return BalancedOrder(self.labels, seed) if self.balanced else EpochOrder(len(self), seed)

    @abstractmethod
    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], int]:
        """Image (C, H, W) uint8 at exactly `image_size`, and label. Raises DataError for a broken image."""

    def is_enlarged(self, index: int) -> bool:
        """Whether an image was smaller than `image_size`. Raises DataError for a broken one."""
        return False

    @abstractmethod
    def describe(self, index: int) -> str:
        """Name one sample for messages: a file path, or `file.parquet row 17`."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Sha256 (hex) of what identifies the data; free of absolute paths, times and listing order.

        Taken once, and the same ever after, whatever happens on the disk meanwhile.
        """

    def _digest(self, kind: str, items: Iterable[str | bytes]) -> str:
        return digest_of(f"{kind} {len(self)} {self.image_size} {self.channels}", (*self.class_names, *items))


class DerivedDataset(ImageDataset):
    """Images of another data set: all, or those at `indices`, in that order; classes keep their numbers."""

    def __init__(self, dataset: ImageDataset, indices: NDArray[np.int64] | None = None) -> None:
        self.dataset = dataset
        self.indices = np.arange(len(dataset)) if indices is None else indices
        super().__init__(dataset.labels[self.indices], dataset.class_names, dataset.image_size, dataset.channels)

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], int]:
        return self.dataset[int(self.indices[index])]

    def is_enlarged(self, index: int) -> bool:
        return self.dataset.is_enlarged(int(self.indices[index]))

    def describe(self, index: int) -> str:
        return self.dataset.describe(int(self.indices[index]))

    def report(self, prefix: str = "--data.") -> list[str]:
        return [*super().report(), *self.dataset.report(prefix)[1:]]  # of the whole without its classes

    def treatment(self, prefix: str = "--data.") -> list[str]:
        return self.dataset.treatment(prefix)

    def fingerprint(self) -> str:
        return self._digest("subset", [self.dataset.fingerprint(), self.indices.tobytes()])


class CachedDataset(DerivedDataset):
    """A data set decoded once and kept in memory as one uint8 tensor `images` (N, C, H, W).

    Raises DataError for more than `max_damaged` images that cannot be read; up to there they are kept in `damaged`, and
    reading one of them raises its DataError.
    """

    def __init__(self, dataset: ImageDataset, max_damaged: int = 0) -> None:
        super().__init__(dataset)
        self.damaged: dict[int, str] = {}
        total, size = len(dataset), dataset.image_size
        self.images = torch.empty(total, dataset.channels, size, size, dtype=torch.uint8)
        pixels = self.images.numpy()
        for index in range(total):
            try:
                pixels[index] = dataset[index][0]
            except DataError as error:
                self.damaged[index] = str(error)
                refuse_damaged(str(error), len(self.damaged), max_damaged)

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], int]:
        if index in self.damaged:
            raise DataError(self.damaged[index])
        return self.images[index].numpy(), int(self.labels[index])

    def fingerprint(self) -> str:
        return self.dataset.fingerprint()


def refuse_damaged(message: str, number: int, limit: int) -> None:
    """Raises DataError for damaged image `number` (from 1) where more than `limit` were met."""
    if limit == 0:
        raise DataError(message)
    if number > limit:
        raise DataError(f"{message}\nIt is damaged image {number}: more than --data.max-damaged {limit} allows")
