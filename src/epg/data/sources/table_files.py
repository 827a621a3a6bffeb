"""The files of a table: parquet or Arrow, alone or in a folder, of one split of several, or saved by `datasets`."""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from epg.data.sources.archives import LocalFile
from epg.data.sources.base import Source, SourceOptions
from epg.data.sources.kinds import is_image, list_folder
from epg.data.sources.shards import missing_shards, of_split
from epg.data.sources.splits import pick_split, refuse_split, split_names
from epg.data.sources.tables import TABLE_SUFFIXES, Opener, TableSource
from epg.errors import DataError


def open_tables(address: str, options: SourceOptions) -> Source | None:
    """A parquet or Arrow file, a folder of them (or its `data` folder), or what `save_to_disk` left."""
    path = Path(address).expanduser()
    if path.is_file() and path.name.lower().endswith(TABLE_SUFFIXES):
        refuse_split(options.split, address)
        return TableSource([(path.name, LocalFile(path.resolve()))], path.name, options)
    if not path.is_dir():
        return None
    name = path.resolve().name
    if (saved := _saved(path, options.split)) is not None:
        listed, rule, place = saved
        return TableSource(listed, name, options, kind="saved data set", rule=rule, unread=_others(place, listed))
    for place in (path, path / "data"):
        if place.is_dir() and (files := _tables_in(place)):
            chosen, rule = tables_of_split(files, options.split, str(path))
            openers = [(file, LocalFile((place / file).resolve())) for file in chosen]
            return TableSource(openers, name, options, rule=rule, unread=_others(place, [(f, None) for f in files]))
    folders = split_names(list_folder(path)[1])
    splits = {folder: split for folder, split in folders.items() if _tables_in(path / folder)}
    if not splits:
        return None
    folder = pick_split(splits, options.split, str(path))[0]
    openers = [(file, LocalFile((path / folder / file).resolve())) for file in _tables_in(path / folder)]
    return TableSource(openers, name, options, rule=f"split {options.split}: folder {folder}/; ")


def _tables_in(folder: Path) -> list[str]:
    """Tables of a folder without images; results that `datasets` keeps of its own computations are none."""
    names, _ = list_folder(folder)
    tables = [name for name in names if name.lower().endswith(TABLE_SUFFIXES)]
    has_images = any(is_image(os.fsencode(name)) for name in names)
    return [] if has_images else [name for name in tables if not re.fullmatch(r"cache-.*\.arrow", name)]


def tables_of_split(files: Sequence[str], split: str, where: str) -> tuple[list[str], str]:
    """The files of a split by their names, and how they were chosen (see `of_split`)."""
    stems = {file: file.rpartition("/")[2].rpartition(".")[0] for file in files}
    chosen, rule = of_split(stems, split, where)
    return chosen, rule + missing_shards([stems[file] for file in chosen])


def _others(folder: Path, files: Sequence[tuple[str, object]]) -> list[str]:
    """Files beside those that are read, without those that describe them."""
    known = {"state.json", "dataset_info.json", "dataset_dict.json", "README.md", "dataset_infos.json"}
    return [name for name in list_folder(folder)[0] if name not in known | {file for file, _ in files}]


def _saved(path: Path, split: str) -> tuple[list[tuple[str, Opener]], str, Path] | None:
    """The files of a data set, or a split of one, that `datasets` saved: those that its state.json lists."""
    rule = ""
    if (path / "dataset_dict.json").is_file():
        known = _json(path / "dataset_dict.json", "splits")
        splits = split_names(set(map(str, known)))
        chosen = pick_split(splits or {str(k): str(k) for k in known}, split, str(path))[0]
        path, rule = path / chosen, f"split {split}: folder {chosen}/; "
    elif (path / "state.json").is_file():
        refuse_split(split, str(path))
    if not (path / "state.json").is_file():
        return None
    listed = [str(entry.get("filename", "")) for entry in _json(path / "state.json", "_data_files")]
    if not listed or any("/" in file or "\\" in file or not (path / file).is_file() for file in listed):
        raise DataError(f"{path}/state.json lists files that are not there ({', '.join(listed[:3])}); copy them, too")
    return [(file, LocalFile((path / file).resolve())) for file in listed], rule, path


def _json(file: Path, key: str) -> list[Any]:
    try:
        return list(json.loads(file.read_bytes())[key])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} cannot be read: {error!r}; save the data set again with save_to_disk") from error
