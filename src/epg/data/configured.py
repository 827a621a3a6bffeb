"""The images that a configuration names, or a part of them."""

import math

import numpy as np

from epg.config.sections import DataConfig
from epg.data.dataset import SourceDataset, open_dataset
from epg.data.loading.base import CachedDataset, DerivedDataset, ImageDataset
from epg.data.order import EpochOrder
from epg.data.pixels.rules import PixelRules, check_rules
from epg.data.sources.base import SourceOptions
from epg.data.sources.memory import Items, open_memory
from epg.errors import UserError

CACHE_BYTES = 512 * 2**20
FRACTION_SEED = 0  # fixed, so that a fraction is the same images in every run


def open_training_data(data: DataConfig, split: str = "train") -> ImageDataset:
    """The images of a configuration; a small set is decoded into memory at once (which also finds broken files)."""
    dataset = open_dataset(
        data.source,
        image_size=data.image_size,
        channels=data.channels,
        split=split,
        labels=data.labels,
        image_column=data.image_column,
        label_column=data.label_column,
        label_file=data.label_file,
        rules=rules_of(data),
    )
    return ready(dataset, data, split)


def training_data_in_memory(images: Items, data: DataConfig) -> ImageDataset:
    """The same of images that a program has in memory, see `epg.data.sources.memory`."""
    options = SourceOptions("train", data.labels, data.image_column, data.label_column, prefix="--data.")
    source = open_memory(images, options)
    size = {"image_size": data.image_size, "channels": data.channels}
    return ready(SourceDataset(source, **size, rules=rules_of(data)), data)


def rules_of(data: DataConfig) -> PixelRules:
    rules = PixelRules(background=data.background, range=data.range, resize=data.resize)
    check_rules(rules, "--data.")
    return rules


def ready(dataset: ImageDataset, data: DataConfig, split: str = "train") -> ImageDataset:
    """The part of a data set that is trained on, in memory where it is small."""
    if split == "train":
        dataset = subset(dataset, per_class=data.per_class, fraction=data.fraction)
    dataset.fingerprint()  # of the images as they are now: a run does not ask the disk again
    small = len(dataset) * data.channels * data.image_size**2 <= CACHE_BYTES
    dataset = CachedDataset(dataset, max_damaged=data.max_damaged) if small else dataset
    dataset.balanced = data.balanced
    return dataset


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
    return DerivedDataset(dataset, np.sort(np.concatenate(chosen)).astype(np.int64))
