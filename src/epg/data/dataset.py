"""One door to every data set: `open_dataset`, for training and for judging."""

import contextlib
from copy import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from epg.data.decode import decode_with_origin, look_at
from epg.data.loading.base import CachedDataset, ImageDataset, NoSplitError, Order
from epg.data.order import BlockOrder
from epg.data.pixels.rules import RULES, PixelRules, changed_rules, check_rules
from epg.data.prepared.encode import decode_stored
from epg.data.prepared.seen import Seen, manifest_lines
from epg.data.prepared.store import Store, is_store, read_manifest
from epg.data.sources.base import LabelChoice, Source, SourceOptions
from epg.data.sources.open import open_source
from epg.data.sources.splits import check_split, split_names
from epg.errors import DataError, UserError

__all__ = ["CachedDataset", "ImageDataset", "NoSplitError", "SourceDataset", "open_dataset"]


RECHECK = 64  # of the images read before, one in this many is compared again
LOOKED_AT = 32  # images, to say what decoding does to a set that is too large to be decoded at once


class SourceDataset(ImageDataset):
    """The images of any source, decoded as they are asked for.

    Nothing is compared with a hash: only a prepared set knows its pixels. The fingerprint is taken here, once.
    """

    def __init__(self, source: Source, *, image_size: int, channels: int, rules: PixelRules = RULES) -> None:
        super().__init__(source.labels, source.class_names, image_size, channels)
        self.source, self.rules = source, rules
        kind, parts = source.identity()
        self._fingerprint = self._digest(kind, [*parts, *changed_rules(rules)])
        self.seen = Seen()
        """What decoding did to the images that were read first, each once."""

    def order(self, seed: int) -> Order:
        """Any order, for which the source may have to make a copy; of one far away, blocks of neighbours."""
        if self.source.streamed and not self.balanced:
            return BlockOrder(len(self), seed)
        self.source = self.source.at_random()
        return super().order(seed)

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], int]:
        try:
            data = self.source.read(index)
        except OSError as error:
            raise DataError(f"{self.describe(index)}: cannot be read: {error.strerror or error}") from error
        except DataError as error:
            raise DataError(f"{self.describe(index)}: {error}") from error
        name = self.describe(index)
        image, origin = decode_with_origin(data, self.image_size, self.channels, name, self.rules)
        if self.seen.images < len(self):
            self.seen.add(name, origin, image_size=self.image_size)
        return image, int(self.labels[index])

    def is_enlarged(self, index: int) -> bool:
        _, height, width = look_at(self.source.read(index))
        return min(height, width) < self.image_size

    def describe(self, index: int) -> str:
        return self.source.locate(index)

    def fingerprint(self) -> str:
        return self._fingerprint

    def report(self, prefix: str = "--data.") -> list[str]:
        rejected = self.source.rejected
        left = [f"left out: {item.name}: {item.reason}" for item in rejected[:3]]
        more = [f"left out: {len(rejected) - 3} more"] if len(rejected) > 3 else []
        return [*super().report(), *self.source.overview.lines(), *left, *more, *self.treatment(prefix)]

    def treatment(self, prefix: str = "--data.") -> list[str]:
        """What decoding does to the images: of those that were read, or else of some."""
        looked = self.seen
        if not looked.images and not self.source.streamed:
            probe = copy(self)  # with files of its own: processes to come would inherit those of this one
            probe.source, probe.seen = copy(self.source), Seen()
            looked = probe.seen
            for index in np.unique(np.linspace(0, len(self) - 1, LOOKED_AT).astype(int)).tolist():
                with contextlib.suppress(DataError):  # which ends the run, or not, when training meets it
                    probe[index]
        lines = looked.lines(self.image_size, self.rules, prefix)
        if lines and looked.images < len(self):
            lines.append(f"This is of {looked.images} of {len(self)} images; epg inspect looks at all of them.")
        return lines


class StoredDataset(ImageDataset):
    """The images of `epg prepare`, cut to `image_size` where they were stored larger.

    Each process compares an image with its hash when it first reads it, and every `RECHECK`-th read later on.
    Raises NoSplitError for another split than the prepared one, UserError where it was prepared smaller.
    """

    def __init__(
        self, folder: Path, *, image_size: int, channels: int, split: str = "train", rules: PixelRules = RULES
    ) -> None:
        self.store = Store(folder)
        manifest = self.store.manifest
        prepared = manifest["options"]["split"]
        if split_names([prepared]).get(prepared) not in check_split(split):
            raise NoSplitError(f"{folder} holds the split {prepared!r}, not {split!r}: prepare that one too")
        if image_size > manifest["pixels"]["image_size"]:
            size = manifest["pixels"]["image_size"]
            raise UserError(
                f"--data.image-size {image_size}: {folder} was prepared at {size}. Train at {size} or smaller, or "
                f"prepare again with --image-size {image_size}"
            )
        if channels > manifest["pixels"]["channels"]:
            raise UserError(f"--data.channels {channels}: {folder} was prepared in grey; use 1 or prepare again")
        labels = np.ascontiguousarray(self.store.index["label"]).astype(np.int64)
        names = tuple(str(entry["name"]) for entry in manifest["classes"])
        for name in ("background", "range"):
            if getattr(rules, name) != getattr(RULES, name):
                raise UserError(f"--data.{name}: {folder} is prepared; this was decided when it was")
        super().__init__(labels, names, image_size, channels)
        self.rules = rules
        self.seen: NDArray[np.uint8] | None = None  # one bit per image; made where it is used, in each worker
        self.reads = 0

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], int]:
        data = self.store.read(index, check=self._is_due(index))
        try:
            image = decode_stored(data, self.image_size, self.channels, self.rules)
        except DataError as error:
            raise DataError(f"{self.describe(index)}: {error}") from error
        assert self.seen is not None
        self.seen[index >> 3] |= 1 << (index & 7)  # not before: a damaged image is to fail in every epoch
        return image, int(self.labels[index])

    def _is_due(self, index: int) -> bool:
        """Whether to compare this image with its hash now."""
        if self.seen is None:
            self.seen = np.zeros(-(-len(self) // 8), dtype=np.uint8)
        self.reads += 1
        return not (self.seen[index >> 3] & (1 << (index & 7)) and self.reads % RECHECK)

    def is_enlarged(self, index: int) -> bool:
        original = self.store.index[index]
        return min(int(original["width"]), int(original["height"])) < self.image_size

    def describe(self, index: int) -> str:
        return self.store.describe(index)

    def report(self, prefix: str = "--data.") -> list[str]:
        return [*super().report(), *manifest_lines(self.store.manifest)[1:]]  # classes may be those of another set

    def fingerprint(self) -> str:
        return self._digest("store", [self.store.manifest["content_sha256"], *changed_rules(self.rules)])


def open_dataset(
    source: str | Path,
    *,
    image_size: int,
    channels: int = 3,
    split: str = "train",
    labels: LabelChoice = "auto",
    image_column: str | None = None,
    label_column: str | None = None,
    label_file: str | None = None,
    rules: PixelRules = RULES,
) -> ImageDataset:
    """Open a prepared set, or any source of images (see `open_source`) as it is.

    Images come out at `image_size`; `channels` is 1 or 3; `split` is train, test, validation or val. Classes are
    numbered as in the training split of the source, by their names, whatever split is opened. Raises NoSplitError when
    the source has no such split, UserError or DataError for anything else that is wrong.
    """
    if image_size < 1:
        raise UserError(f"--data.image-size {image_size}: must be at least 1")
    if channels not in (1, 3):
        raise UserError(f"--data.channels {channels}: choose 1 (grey) or 3 (colour)")
    check_rules(rules, "--data.")
    options = SourceOptions(split, labels, image_column, label_column, label_file, prefix="--data.")
    store = find_store(Path(source).expanduser(), split)
    if store is not None:
        given = {"image-column": image_column, "label-column": label_column, "label-file": label_file}
        if flags := [options.flag(name) for name, value in given.items() if value is not None]:
            raise UserError(f"{' and '.join(flags)}: {source} is prepared; labels were chosen when it was")
        dataset: ImageDataset = StoredDataset(store, image_size=image_size, channels=channels, split=split, rules=rules)
    else:
        opened = open_source(str(source), options)
        dataset = SourceDataset(opened, image_size=image_size, channels=channels, rules=rules)
    if "train" not in check_split(split) and dataset.class_names:
        names = _training_classes(Path(source).expanduser(), str(source), options)
        if names:
            dataset.follow(names, f"the training split of {source}")
    return dataset


def _training_classes(path: Path, source: str, options: SourceOptions) -> tuple[str, ...]:
    """The classes of the training split; none where there is no such split."""
    try:
        if (store := find_store(path, "train")) is not None:
            return tuple(str(entry["name"]) for entry in read_manifest(store)["classes"])
        return open_source(source, replace(options, split="train")).class_names
    except NoSplitError:
        return ()


def find_store(path: Path, split: str) -> Path | None:
    """The prepared set in a folder, or in its sub-folder for `split`; None where it is no prepared set."""
    if is_store(path):
        return path
    if not path.is_dir():
        return None
    stores = {entry.name for entry in path.iterdir() if is_store(entry)}
    kinds = split_names(stores)
    wanted = [name for kind in check_split(split) for name in sorted(stores) if kinds.get(name) == kind]
    return path / wanted[0] if wanted else None
