"""The images a generator was trained on, and equally real ones that it has never seen."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from epg.config.sections import DataConfig
from epg.data.configured import open_training_data, subset
from epg.data.loading.base import DerivedDataset, ImageDataset, NoSplitError
from epg.errors import UserError


def training_and_held_out(data: DataConfig, held_out: str | None = None) -> tuple[ImageDataset, ImageDataset]:
    """The training images of a configuration, and held-out ones of the same kind.

    Args:
        held_out: where the latter are (its test split, or all of it); None takes the test split of `data.source` and
            what `data.fraction` and `data.per_class` left out of its training split.

    Raises UserError where there are none.
    """
    train, held = open_training_data(data), held_out_of(data, held_out)
    held.follow(train.class_names, f"the training set {data.source}")
    return train, held


def held_out_of(data: DataConfig, held_out: str | None = None) -> ImageDataset:
    """The held-out images of `training_and_held_out`."""
    complete = data.model_copy(update={"per_class": None, "fraction": 1.0, "balanced": False})
    if held_out is not None:
        ours = {"labels": "auto", "image_column": None, "label_column": None, "label_file": None}
        other = complete.model_copy(update={"source": held_out, **ours})
        return _test_split(other) or open_training_data(other)
    left = _left_out(complete, data)
    parts = [part for part in (_test_split(complete), left) if part is not None]
    if not parts:
        raise UserError(
            f"--held-out: {data.source} has no test split, and all of it was trained on. Name real images of the same "
            "kind that the model has never seen (or train with --data.fraction 0.8, which keeps a fifth)."
        )
    return parts[0] if len(parts) == 1 else JoinedDataset(parts)


def _test_split(data: DataConfig) -> ImageDataset | None:
    try:
        return open_training_data(data, split="test")
    except NoSplitError:
        return None


def _left_out(complete: DataConfig, used: DataConfig) -> ImageDataset | None:
    """The part of the training split that a run with `fraction` or `per_class` did not see."""
    everything = open_training_data(complete)
    chosen = subset(everything, per_class=used.per_class, fraction=used.fraction)
    if not isinstance(chosen, DerivedDataset) or len(chosen) == len(everything):
        return None
    return DerivedDataset(everything, np.setdiff1d(np.arange(len(everything)), chosen.indices))


class JoinedDataset(ImageDataset):
    """Several data sets of the same classes and size, one after the other."""

    def __init__(self, parts: Sequence[ImageDataset]) -> None:
        first = parts[0]
        labels = np.concatenate([part.labels for part in parts])
        super().__init__(labels, first.class_names, first.image_size, first.channels)
        self.parts = parts
        self.ends = np.cumsum([len(part) for part in parts])

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], int]:
        part, inside = self._place(index)
        return part[inside]

    def is_enlarged(self, index: int) -> bool:
        part, inside = self._place(index)
        return part.is_enlarged(inside)

    def describe(self, index: int) -> str:
        part, inside = self._place(index)
        return part.describe(inside)

    def fingerprint(self) -> str:
        return self._digest("joined", [part.fingerprint() for part in self.parts])

    def _place(self, index: int) -> tuple[ImageDataset, int]:
        which = int(np.searchsorted(self.ends, index, side="right"))
        return self.parts[which], int(index - (self.ends[which] - len(self.parts[which])))
