"""The images that a configuration names."""

from epg.config.sections import DataConfig
from epg.data.loading.dataset import CachedDataset, ImageDataset, open_dataset
from epg.data.loading.subset import subset
from epg.data.pixels.rules import PixelRules

CACHE_BYTES = 512 * 2**20


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
        rules=PixelRules(background=data.background, range=data.range, resize=data.resize),
    )
    if split == "train":
        dataset = subset(dataset, per_class=data.per_class, fraction=data.fraction)
    dataset.fingerprint()  # of the images as they are now: a run does not ask the disk again
    small = len(dataset) * data.channels * data.image_size**2 <= CACHE_BYTES
    dataset = CachedDataset(dataset, max_damaged=data.max_damaged) if small else dataset
    dataset.balanced = data.balanced
    return dataset
