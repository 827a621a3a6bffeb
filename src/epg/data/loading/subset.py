"""Parts of a data set, for studies with few images."""

import math

import numpy as np
from numpy.typing import NDArray

from epg.data.loading.base import ImageDataset
from epg.data.order import EpochOrder
from epg.errors import UserError

FRACTION_SEED = 0  # fixed, so that a fraction is the same images in every run


class SubsetDataset(ImageDataset):
    """The images of `dataset` at `indices`, in that order; classes keep their numbers."""

    def __init__(self, dataset: ImageDataset, indices: NDArray[np.int64]) -> None:
        super().__init__(dataset.labels[indices], dataset.class_names, dataset.image_size, dataset.channels)
        self.dataset = dataset
        self.indices = indices

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


def subset(dataset: ImageDataset, *, per_class: int | None = None, fraction: float = 1.0) -> ImageDataset:
    """The first `per_class` images of every class, and of those a `fraction` of every class.

    A fraction is drawn once and for all (a smaller one is part of a larger one) and leaves every class at least one
    image. Without labels, all images count as one class. Raises UserError for values out of range.
    """
    if per_class is not None and per_class < 1:
        raise UserError(f"--data.per-class {per_class}: must be at least 1")
    if not 0 < fraction <= 1:
        raise UserError(f"--data.fraction {fraction}: must be more than 0 and at most 1")
    if per_class is None and fraction == 1:
        return dataset
    by_class = np.argsort(dataset.labels, kind="stable")
    chosen = []
    for members in np.split(by_class, np.flatnonzero(np.diff(dataset.labels[by_class])) + 1):
        first = members[:per_class]
        count = max(1, math.floor(fraction * len(first) + 0.5))
        order = EpochOrder(len(first), FRACTION_SEED).indices(np.arange(count))
        chosen.append(first[order] if fraction < 1 else first)
    return SubsetDataset(dataset, np.sort(np.concatenate(chosen)).astype(np.int64))
