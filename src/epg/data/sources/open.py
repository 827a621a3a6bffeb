"""One door to every source: `open_source`."""

import os
from functools import partial
from pathlib import Path
from typing import BinaryIO

from epg.data.sources.archives import ARCHIVE_SUFFIXES, ZIP_SUFFIXES, TarSource, ZipSource
from epg.data.sources.base import Source, SourceOptions
from epg.data.sources.files import FolderSource
from epg.data.sources.remote import RemoteFile, RemoteFolderSource, attempt, connect, is_remote, public_name
from epg.data.sources.tables import TABLE_SUFFIXES, TableSource
from epg.data.splits import SPLIT_NAMES
from epg.errors import DataError, UserError


def open_source(address: str, options: SourceOptions) -> Source:
    """List a source of images.

    `address` is a folder, a zip or tar archive, a parquet or Arrow file or a folder of them, an `s3://`, `gs://` or
    `hf://` address of any of these, or the Hub name of a data set. Raises UserError or DataError with the cure.
    """
    if is_remote(address):
        return _open_remote(address, options)
    path = Path(address).expanduser()
    if path.is_dir():
        tables = _tables_of(path, options)
        name = path.resolve().name
        return TableSource(tables, name, options) if tables else FolderSource(path, options)
    if path.is_file():
        opener = partial(open_binary, path.resolve())
        name = path.name
        if name.lower().endswith(ZIP_SUFFIXES):
            return ZipSource(opener, name, options)
        if name.lower().endswith(ARCHIVE_SUFFIXES):
            return TarSource(opener, name, options, path.stat().st_size)
        if name.lower().endswith(TABLE_SUFFIXES):
            if options.split != "train":
                raise UserError(f"--split {options.split}: {address} is one file; name the file of that split")
            return TableSource([(name, opener)], name, options)
        raise DataError(
            f"{address}: an unknown kind of file; give a folder, {', '.join(ARCHIVE_SUFFIXES + TABLE_SUFFIXES)}"
        )
    from epg.data.sources.hub import HUB_NAME, HubSource

    if HUB_NAME.fullmatch(address) and not os.path.lexists(path.parent):
        return HubSource(address, options)
    raise DataError(f"{address}: neither a file, nor a folder, nor the Hub name of a data set (such as user/name)")


def open_binary(path: Path) -> BinaryIO:
    """A local file for reading."""
    return path.open("rb")


def _open_remote(address: str, options: SourceOptions) -> Source:
    files, path = connect(address)
    name = public_name(address)
    if attempt(lambda: files.isdir(path), name):
        listing = attempt(lambda: files.find(path, detail=False), name)
        chosen = _pick_split([str(file) for file in listing if str(file).endswith(TABLE_SUFFIXES)], options.split, name)
        if chosen:
            return TableSource([(file.rpartition("/")[2], RemoteFile(files, file)) for file in chosen], name, options)
        return RemoteFolderSource(files, path, name, options)
    opener = RemoteFile(files, path)
    lower = name.lower()
    if lower.endswith(ZIP_SUFFIXES):
        return ZipSource(opener, name, options)
    if lower.endswith(ARCHIVE_SUFFIXES):
        return TarSource(opener, name, options, int(attempt(lambda: files.size(path), name) or 0))
    if lower.endswith(TABLE_SUFFIXES):
        return TableSource([(name, opener)], name, options)
    raise DataError(f"{name}: no such file or folder, or an unknown kind of file")


def _tables_of(folder: Path, options: SourceOptions):  # type: ignore[no-untyped-def]
    """Parquet or Arrow files of a split in a folder, or in its `data` or split folders; [] if there are none."""
    places = [folder, folder / "data", *(folder / name for name in SPLIT_NAMES.get(options.split, ()))]
    for place in places:
        if not place.is_dir():
            continue
        names = sorted(entry.name for entry in os.scandir(place) if entry.name.lower().endswith(TABLE_SUFFIXES))
        if not names:
            continue
        chosen = names if place.name in SPLIT_NAMES else _pick_split(names, options.split, str(place))
        return [(name, partial(open_binary, (place / name).resolve())) for name in chosen]
    return []


def _pick_split(files: list[str], split: str, where: str) -> list[str]:
    """The files of a split by the beginning of their names; all of them where no name has one and train is wanted."""

    def split_of(file: str) -> str | None:
        name = file.rpartition("/")[2].lower()
        starts = [s for s in ("train", "test", "validation", "val") if name.startswith(s)]
        return starts[0] if starts and not name[len(starts[0]) : len(starts[0]) + 1].isalpha() else None

    splits = [split_of(file) for file in files]
    if not any(splits):
        if files and split != "train":
            raise UserError(f"--split {split}: the files of {where} do not name splits")
        return sorted(files)
    for name in SPLIT_NAMES.get(split, (split,)):
        chosen = sorted(file for file, found in zip(files, splits, strict=True) if found == name)
        if chosen:
            return chosen
    raise UserError(f"--split {split}: {where} has only {', '.join(sorted({s for s in splits if s}))}")
