"""What is to be judged: a trained generator, an `.npz`, a folder of images, or a data set."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from epg.checkpoint import checkpoint, export
from epg.checkpoint.loading import Trained
from epg.config.sections import DataConfig
from epg.data.dataset import find_store, open_dataset
from epg.data.loading.base import DerivedDataset, ImageDataset
from epg.data.pixels.rules import RULES, PixelRules
from epg.data.prepared.store import is_store, read_manifest
from epg.data.sources.open import is_packed
from epg.data.sources.remote import is_remote
from epg.errors import UserError
from epg.evaluation.image_folder import ImageFolder, trained_in
from epg.evaluation.named import no_samples
from epg.evaluation.npz import NpzSource
from epg.evaluation.sources import DatasetSource, GeneratorSource, ImageSource, TensorSource
from epg.pipeline import folder as pipeline
from epg.pipeline.folder import Saved
from epg.randomness import permutation
from epg.sampling import Request, open_request
from epg.storage import assets, hub

DEFAULT_COUNT = 1000  # samples of a generator


@dataclass(frozen=True)
class Subject:
    """Images to be judged and what is known of them."""

    source: ImageSource
    warnings: list[str] = field(default_factory=list)
    data: DataConfig | None = None
    """What a run was trained on: the reference unless another one is named."""
    trained_on: str | None = None
    """Fingerprint of its images."""
    trained_in: tuple[str, ...] = ()
    """Sha256 of the encoders in whose features a generator was trained, and of its own: these judge nothing."""

    @property
    def rules(self) -> PixelRules:
        """By which a run read its images; the usual ones of what is no run."""
        data = self.data
        return PixelRules(background=data.background, range=data.range, resize=data.resize) if data else RULES


def open_subject(
    path: str, count: int | None, request: Request, *, image_size: int | None = None, split: str | None = None
) -> Subject:
    """Images of whatever `path` is.

    Args:
        count: how many; None is all, or DEFAULT_COUNT of a generator.
        request: how a generator samples.
        image_size: of a data set that is not prepared.
        split: of a data set; None is its test split, or the only one of a prepared set.
    """
    if count is not None and count < 2:
        raise UserError(f"--count {count}: must be at least 2")
    place = Path(path).expanduser()
    if is_generator(path):
        return generated(path, replace(request, count=count or DEFAULT_COUNT))
    if place.suffix == ".npz":
        archive = NpzSource(place, count)
        total = archive.header.shape[0]
        part = [f"only the first {archive.count} of the {total} images of {place.name}"]
        return Subject(archive, part if archive.count < total else [], trained_in=trained_in(place.parent))
    if is_dataset(path):
        split = split or only_split(path) or "test"
        dataset = open_whole(path, image_size=image_size, split=split)
        return Subject(some_of(dataset, Path(path).name, count, {"split": split}))
    if not place.is_dir():
        raise no_samples(path)
    if runs := checkpoint.offer(place):
        raise UserError(f"{path}: holds runs; pass one of them.{runs}")
    folder = ImageFolder(place, count)
    return Subject(folder, folder.warnings, trained_in=trained_in(place))


def some_of(
    dataset: ImageDataset, name: str, count: int | None = None, details: dict[str, Any] | None = None
) -> DatasetSource:
    """`count` images of a data set, chosen at random but always the same; None for all."""
    if count is not None and count < len(dataset):
        dataset = DerivedDataset(dataset, np.sort(permutation(len(dataset), 0, "some images")[:count]))
    return DatasetSource(dataset, name, details or {})


def like(dataset: ImageDataset, data: DataConfig, learnt: Sequence[str] = ()) -> Subject:
    """In the place of samples to come of a model of these images, for a jury to be opened for them."""
    shape = (1, dataset.channels, dataset.image_size, dataset.image_size)
    images = TensorSource(torch.zeros(shape, dtype=torch.uint8))
    return Subject(images, data=data, trained_in=tuple(learnt))


def is_generator(path: str) -> bool:
    """A run folder, checkpoint, export or pipeline folder, the name of a repository, or the address of an asset."""
    place = Path(path).expanduser()
    if place.is_dir():
        is_checkpoint = (place / checkpoint.STATE).is_file() and (place / checkpoint.MANIFEST).is_file()
        trained = (place / "checkpoints").is_dir() or export.is_export(place) or export.is_export(place / export.FOLDER)
        return is_checkpoint or trained or pipeline.is_pipeline(place)
    return assets.is_address(path) or hub.is_repository(path)


def is_dataset(path: str) -> bool:
    """Something that images are trained on rather than a folder of samples: prepared, tables, digits, remote."""
    place = Path(path).expanduser()
    stores = any(find_store(place, split) is not None for split in ("train", "test"))
    return path == "digits" or is_remote(path) or is_packed(place) or stores


def only_split(path: str) -> str | None:
    """The split that a prepared set is of; None for what may hold several."""
    place = Path(path).expanduser()
    prepared = path != "digits" and not is_remote(path) and is_store(place)
    return str(read_manifest(place)["options"]["split"]) if prepared else None


def open_whole(
    path: str,
    *,
    image_size: int | None,
    channels: int | None = None,
    split: str = "train",
    rules: PixelRules = RULES,
) -> ImageDataset:
    """A data set at the size it was prepared for, or, by `rules`, at `image_size`.

    Raises UserError where no size is known.
    """
    store = None if path == "digits" or is_remote(path) else find_store(Path(path).expanduser(), split)
    if store is not None:
        pixels = read_manifest(store)["pixels"]
        prepared, colours = int(pixels["image_size"]), int(pixels["channels"])
        if image_size not in (None, prepared):
            raise UserError(
                f"{path}: prepared at {prepared}x{prepared}, but {image_size}x{image_size} is asked for. Prepare it "
                "again at that size: scaling twice is another preprocessing, and changes every metric."
            )
        return open_dataset(path, image_size=prepared, channels=colours, split=split)
    if path == "digits":
        image_size, channels = image_size or 8, channels or 1
    if image_size is None:
        raise UserError(f"--image-size: {path} is not prepared; which size shall its images have?")
    return open_dataset(path, image_size=image_size, channels=channels or 3, split=split, rules=rules)


def generated(path: str, request: Request, weights: Trained | Saved | None = None) -> Subject:
    """Samples of a generator; `weights` are those in `path`, if they are open. Raises ArtefactError, UserError."""
    opened = open_request(weights or path, request)
    opened.place()
    name = Path(path).name
    trained = opened.source
    learnt = () if trained is None else trained.trained_in()
    if not isinstance(trained, Trained):
        return Subject(GeneratorSource(opened, {"name": name}), trained_in=learnt)
    details: dict[str, Any] = {
        "name": name,
        "recipe": trained.config.recipe,
        "stage": trained.config.stage,
        "step": trained.step,
        "ema": trained.kind,
        "trained_on": trained.checkpoint and str(trained.checkpoint.state["data"]),
    }
    return Subject(GeneratorSource(opened, details), [], trained.config.data, details["trained_on"], learnt)
