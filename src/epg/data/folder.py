"""Folders of image files: one sub-folder per class, or all images in one folder without labels."""

import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from epg.data.base import ImageDataset, NoSplitError
from epg.data.decode import EXTENSIONS, decode_image
from epg.data.splits import ALL_SPLITS, SPLIT_NAMES
from epg.errors import DataError


class FolderDataset(ImageDataset):
    """Image files below `root`: its sub-folders are the classes (sorted by name), or it holds the images.

    Raises DataError when there are no images, or both images and class folders.
    """

    def __init__(self, root: Path, *, image_size: int, channels: int) -> None:
        flat = sorted(entry.name for entry in _entries(root) if _is_image(entry))
        found = {
            entry.name: files
            for entry in _entries(root)
            if entry.is_dir() and (files := sorted(_walk(Path(entry.path), entry.name)))
        }
        if flat and found:
            raise DataError(
                f"{root} holds both images ({flat[0]}) and folders of images ({min(found)}): move the images "
                "into a class folder, or all images directly into one folder to train without labels"
            )
        if not flat and not found:
            raise DataError(f"{root} holds no images; files looked for: *{', *'.join(EXTENSIONS)}, or *.parquet")
        names = sorted(found)
        files = flat or [file for name in names for file in found[name]]
        counts = [len(found[name]) for name in names]
        labels = np.full(len(files), -1) if flat else np.repeat(np.arange(len(names)), counts)
        super().__init__(labels.astype(np.int64), tuple(names), image_size, channels)
        self.root = root
        # One array and not a list of str: reference counts of a list would make every worker copy its pages.
        self.files: NDArray[np.bytes_] = np.array([os.fsencode(file) for file in files], dtype=np.bytes_)

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], int]:
        return decode_image(self._path(index), self.image_size, self.channels), int(self.labels[index])

    def describe(self, index: int) -> str:
        return str(self._path(index))

    def fingerprint(self) -> str:
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        items = (f"{os.fsdecode(file)} {(self.root / os.fsdecode(file)).stat().st_size}" for file in self.files)
        return self._digest("folder", sorted(items))

    def _path(self, index: int) -> Path:
        return self.root / os.fsdecode(self.files[index])


def pick_split(root: Path, split: str) -> Path:
    """The sub-folder of `root` that holds `split`; `root` itself for train when it has no split folders.

    Split folders are `train`, `test`, `validation`, `val` where nothing else holds images; a class called "train"
    beside other classes stays a class. Raises NoSplitError, or DataError where the layout can be read both ways.
    """
    if split not in SPLIT_NAMES:
        raise NoSplitError(f"unknown split {split!r}: choose one of {', '.join(SPLIT_NAMES)}")
    folders = {entry.name: Path(entry.path) for entry in _entries(root) if entry.is_dir()}
    splits = [name for name in ALL_SPLITS if name in folders and _has_images(folders[name])]
    others = [name for name in sorted(folders) if splits and name not in ALL_SPLITS and _has_images(folders[name])]
    if others and len(splits) > 1:
        raise DataError(
            f"{root} holds split folders ({', '.join(splits)}) beside other folders of images ({others[0]}): "
            f"name the one to use, such as {folders[splits[0]]}"
        )
    if others or not splits:
        if split != "train":
            raise NoSplitError(f"{root} has no {split!r} split: no folder {' or '.join(SPLIT_NAMES[split])}")
        return root
    for name in SPLIT_NAMES[split]:
        if name in splits:
            return folders[name]
    raise NoSplitError(f"{root} has no {split!r} split, only {', '.join(splits)}")


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """What a folder holds, except hidden entries."""
    with os.scandir(folder) as entries:
        yield from (entry for entry in entries if not entry.name.startswith("."))


def _is_image(entry: os.DirEntry[str]) -> bool:
    return entry.name.lower().endswith(EXTENSIONS) and not entry.is_dir()


def _walk(folder: Path, prefix: str, seen: frozenset[tuple[int, int]] = frozenset()) -> Iterator[str]:
    """Images at any depth, as `prefix/...` paths; follows links, but never back into a parent folder."""
    status = folder.stat()
    identity = (status.st_dev, status.st_ino)
    if identity in seen:
        return
    for entry in _entries(folder):
        if _is_image(entry):
            yield f"{prefix}/{entry.name}"
        elif entry.is_dir():
            yield from _walk(Path(entry.path), f"{prefix}/{entry.name}", seen | {identity})


def _has_images(folder: Path) -> bool:
    """Whether a folder holds image or parquet files at any depth; stops at the first."""
    if any(entry.name.lower().endswith(".parquet") for entry in _entries(folder)):
        return True
    return next(_walk(folder, ""), None) is not None
