"""Images to be judged, by number: of a data set, in memory, or drawn by a generator as they are asked for."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from epg.config.sections import SamplingConfig
from epg.data.base import ImageDataset
from epg.data.classes import renumbered, some
from epg.errors import DataError, UserError
from epg.generator import Generator


class ImageSource(Protocol):
    """`count` uint8 images of one shape; every process has all of them at hand."""

    @property
    def count(self) -> int: ...

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        ...

    @property
    def labels(self) -> Tensor | None:
        """int64 (count,), or None."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """What the labels are numbers in; empty where only numbers are known."""
        ...

    def read(self, start: int, stop: int) -> Tensor:
        """Images `start` to `stop - 1`, uint8 (N, C, H, W) on the CPU."""
        ...

    def describe(self) -> dict[str, Any]:
        """What the receipt says of them: JSON."""
        ...


def labels_among(source: ImageSource, class_names: tuple[str, ...], whose: str) -> Tensor:
    """The labels (N,) of a source as numbers in `class_names`: by name, or, where it has none, as they are.

    Raises DataError for a class that is not among them.
    """
    labels = source.labels
    assert labels is not None
    if source.class_names:
        return torch.from_numpy(renumbered(labels.numpy(), source.class_names, class_names, whose))
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= len(class_names):
        wrong = low if low < 0 else high
        raise DataError(
            f"the samples have a label {wrong}, but {whose} has the {len(class_names)} classes 0 to "
            f"{len(class_names) - 1} ({some(class_names)}); correct the labels, or leave them out"
        )
    return labels


@dataclass(frozen=True)
class TensorSource:
    """Images in memory."""

    images: Tensor  # uint8 (N, C, H, W)
    labels: Tensor | None = None
    name: str = "images in memory"
    class_names: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def read(self, start: int, stop: int) -> Tensor:
        return self.images[start:stop]

    def describe(self) -> dict[str, Any]:
        return {"kind": "tensor", "name": self.name}


@dataclass(frozen=True)
class DatasetSource:
    """The images of a data set, or those at `indices`."""

    dataset: ImageDataset
    name: str
    indices: NDArray[np.int64] | None = None
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def count(self) -> int:
        return len(self.dataset) if self.indices is None else len(self.indices)

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.dataset.channels, self.dataset.image_size, self.dataset.image_size

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.dataset.class_names

    @property
    def labels(self) -> Tensor | None:
        if self.dataset.num_classes == 0:
            return None
        labels = self.dataset.labels if self.indices is None else self.dataset.labels[self.indices]
        return torch.from_numpy(labels)

    def read(self, start: int, stop: int) -> Tensor:
        chosen = range(start, stop) if self.indices is None else self.indices[start:stop]
        return torch.stack([torch.from_numpy(np.array(self.dataset[int(i)][0])) for i in chosen])

    def count_enlarged(self) -> int:
        """Images that were smaller than the size they have here."""
        chosen = range(self.count) if self.indices is None else self.indices
        return sum(self.dataset.is_enlarged(int(i)) for i in chosen)

    def describe(self) -> dict[str, Any]:
        return {"kind": "dataset", "name": self.name, "data": self.dataset.fingerprint(), **self.details}


@dataclass(frozen=True)
class GeneratorSource:
    """Samples of a generator, drawn when they are read; nothing touches the disk.

    `labels` is (count,) int64, or None for an unconditional model. Image i depends on (seed, i) and its label alone.
    """

    model: Generator
    count: int
    labels: Tensor | None
    seed: int = 0
    sampling: SamplingConfig | None = None
    guide: Generator | None = None
    batch_size: int = 64
    details: dict[str, Any] = field(default_factory=dict)
    """Checkpoint, its hash, EMA, how labels were chosen: whatever the caller knows beyond the model."""

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.model.class_names

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.model.image_shape

    def read(self, start: int, stop: int) -> Tensor:
        try:
            return self.model.sample(
                None if self.labels is None else self.labels[start:stop],
                stop - start,
                seed=self.seed,
                first=start,
                sampling=self.sampling,
                guide=self.guide,
                batch_size=self.batch_size,
            )
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"--batch-size {self.batch_size}: more than the memory of {self.model.device}; try "
                f"{max(1, self.batch_size // 2)}"
            ) from error

    def describe(self) -> dict[str, Any]:
        sampling = self.sampling or self.model.sampling
        return {
            "kind": "generator",
            **self.details,
            "seed": self.seed,
            "sampling": sampling.model_dump(mode="json"),
            "autoguidance": self.guide is not None,
            "nfe": self.model.count_evaluations(sampling),
        }


Progress = Callable[[int, int], None]
"""Called with (images done, images in all)."""
