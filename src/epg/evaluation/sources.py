"""Images to be judged, by number: of a data set, in memory, or drawn by a generator as they are asked for."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from epg.data.loading.base import ImageDataset
from epg.data.sources.classes import renumbered, some
from epg.errors import DataError, UserError
from epg.sampling.request import Opened, label_kind


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
    """The images of a data set."""

    dataset: ImageDataset
    name: str
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def count(self) -> int:
        return len(self.dataset)

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.dataset.channels, self.dataset.image_size, self.dataset.image_size

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.dataset.class_names

    @property
    def labels(self) -> Tensor | None:
        return torch.from_numpy(self.dataset.labels) if self.dataset.num_classes else None

    def read(self, start: int, stop: int) -> Tensor:
        return torch.stack([torch.from_numpy(np.array(self.dataset[i][0])) for i in range(start, stop)])

    def count_enlarged(self) -> int:
        """Images that were smaller than the size they have here."""
        return sum(self.dataset.is_enlarged(i) for i in range(self.count))

    def describe(self) -> dict[str, Any]:
        return {"kind": "dataset", "name": self.name, "data": self.dataset.fingerprint(), **self.details}


@dataclass(frozen=True)
class GeneratorSource:
    """Samples of a generator, drawn when they are read; nothing touches the disk.

    Image i depends on the request's seed, i, and its label alone.
    """

    opened: Opened
    details: dict[str, Any] = field(default_factory=dict)
    """What the caller knows beyond the request: where the weights come from."""

    @property
    def count(self) -> int:
        return self.opened.request.count

    @property
    def labels(self) -> Tensor | None:
        return self.opened.labels

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.opened.model.class_names

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.opened.model.image_shape

    def read(self, start: int, stop: int) -> Tensor:
        opened, batch = self.opened, self.opened.request.batch_size
        labels = None if opened.labels is None else opened.labels[start:stop]
        try:
            return opened.model.sample(
                labels,
                stop - start,
                seed=opened.request.seed,
                first=start,
                sampling=opened.sampling,
                guide=opened.guide,
                batch_size=batch,
            )
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"--batch-size {batch}: more than the memory of {opened.model.device}; try {max(1, batch // 2)}"
            ) from error

    def describe(self) -> dict[str, Any]:
        opened, request = self.opened, self.opened.request
        return {
            "kind": "generator",
            **self.details,
            **opened.hashes,
            "labels": label_kind(opened.model, request.labels, opened.classes),
            "dtype": request.dtype,
            "to_pixels": "round to the nearest of 256 values after clamping",
            "seed": request.seed,
            "sampling": opened.sampling.model_dump(mode="json"),
            "autoguidance": opened.guide is not None,
            "nfe": opened.model.count_evaluations(opened.sampling, opened.guide),
        }


Progress = Callable[[int, int], None]
"""Called with (images done, images in all)."""
