"""A prepared set as a data set for training, every image compared with its hash the first time it is read."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from epg.data.loading.base import ImageDataset
from epg.data.pixels.rules import RULES, PixelRules, changed_rules
from epg.data.prepared.encode import decode_stored
from epg.data.prepared.seen import manifest_lines
from epg.data.prepared.store import Store
from epg.data.sources.splits import NoSplitError, check_split, split_names
from epg.errors import DataError, UserError

RECHECK = 64  # of the images read before, one in this many is compared again


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
