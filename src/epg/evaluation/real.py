"""The data set that samples are compared with: its images, and others like them that it does not contain."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from epg.config.sections import DataConfig
from epg.data.configured import open_training_data
from epg.data.loading.base import ImageDataset, NoSplitError
from epg.data.pixels.rules import PixelRules
from epg.errors import UserError
from epg.evaluation.extractors import IN_DOMAIN
from epg.evaluation.extractors.indomain import with_held_out
from epg.evaluation.reference_files import is_saved
from epg.evaluation.subjects import Subject, only_split, open_whole

FEWEST_TO_SPLIT = 10  # images, of which a fifth is set aside


@dataclass(frozen=True)
class Real:
    """The data set that samples are compared with, and images it does not contain."""

    name: str
    split: str
    train: ImageDataset
    held_out: ImageDataset | None
    """None where the set has no such split and no features need one."""
    part_of: ImageDataset | None = None
    """The whole set, where `train` is four fifths of it and `held_out` the last."""

    @property
    def whole(self) -> ImageDataset:
        """The images that the set, or its split, holds."""
        return self.part_of or self.train

    @property
    def labelled(self) -> tuple[ImageDataset, ImageDataset] | None:
        """What a classifier is trained on, and what it is tested on."""
        return (self.train, self.held_out) if self.held_out is not None and self.train.num_classes >= 2 else None


def open_real(place: str | DataConfig, subject: Subject, split: str | None, rules: PixelRules) -> Real | None:
    """The reference as images, or None where it is a file of statistics."""
    channels, size, _ = subject.source.shape
    if isinstance(place, DataConfig):
        name, split = Path(place.source).name, "train"
        opened = partial(open_training_data, place)
    elif place.endswith(".npz") or is_saved(Path(place)):
        return None
    else:
        name, split = Path(place).name, split or only_split(place) or "train"
        opened = partial(open_whole, place, image_size=size, channels=channels, rules=rules)
    train = opened(split=split)
    try:
        held_out: ImageDataset | None = opened(split="test" if split == "train" else "train")
    except NoSplitError:
        held_out = None
    if held_out is not None and train.num_classes and not held_out.num_classes:
        held_out = None  # without the labels that the others have, no classifier could be tested
    return Real(name, split, train, held_out)


def with_fifth(real: Real | None, features: Sequence[str], held_out: bool = False) -> Real | None:
    """For in-domain features, and for metrics that need held-out images, a fifth of the images is set aside where there
    is no other split; FID takes them all. Raises UserError where there are too few images, or none but statistics."""
    if held_out and (real is None or (real.held_out is None and len(real.train) < FEWEST_TO_SPLIT)):
        raise UserError(
            "--metrics fdr: needs real images that the reference does not contain. Pass a data set as --reference: its "
            f"test split, or a fifth of at least {FEWEST_TO_SPLIT} images, is held out"
        )
    if real is None or real.held_out is not None or not (held_out or {*features} & {*IN_DOMAIN}):
        return real
    if len(real.train) >= FEWEST_TO_SPLIT:
        return Real(real.name, f"four fifths of {real.split}", *with_held_out(real.train), part_of=real.train)
    if "classifier" in features:
        raise UserError(
            f"--features classifier: {real.name} has {len(real.train)} images, too few to train on and to test; at "
            f"least {FEWEST_TO_SPLIT} are needed"
        )
    return real
