"""The files of a table: parquet or Arrow, alone or in a folder, of one split of several, or saved by `datasets`."""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from epg.data.sources.archives import LocalFile
from epg.data.sources.base import Source, SourceOptions
from epg.data.sources.kinds import is_image, is_text, list_folder
from epg.data.sources.shards import missing_shards, of_split
from epg.data.sources.splits import pick_split, refuse_split, split_names
from epg.data.sources.tables import TABLE_SUFFIXES, TableSource
from epg.errors import DataError


@dataclass(frozen=True)
class _Files:
    """The files of a table in a folder, and how they were chosen."""

    folder: Path
    names: Sequence[str]
    rule: str = ""
    kind: str = "table"
    known: Sequence[str] = ()
    """Files of the folder that are no surprise: those of other splits."""


def open_tables(address: str, options: SourceOptions) -> Source | None:
    """A parquet or Arrow file, a folder of them (or its `data` folder), or what `save_to_disk` left."""
    path = Path(address).expanduser()
    if path.is_file() and path.name.lower().endswith(TABLE_SUFFIXES):
        refuse_split(options.split, address)
        return TableSource([(path.name, LocalFile(path.resolve()))], path.name, options)
    found = (_saved(path, options.split) or _in_folder(path, options.split)) if path.is_dir() else None
    if found is None:
        return None
    openers = [(file, LocalFile((found.folder / file).resolve())) for file in found.names]
    known = {"state.json", "dataset_info.json", "dataset_dict.json", "README.md", "dataset_infos.json"}
    unread = set(list_folder(found.folder)[0]) - known - {*found.names, *found.known}
    name = path.resolve().name
    return TableSource(openers, name, options, kind=found.kind, rule=found.rule, unread=sorted(unread))


def _in_folder(path: Path, split: str) -> _Files | None:
    """Tables right in a folder or its `data`, by the splits in their names, or in folders called by splits."""
    for place in (path, path / "data"):
        if files := _tables_in(place):
            return _Files(place, *tables_of_split(files, split, str(path)), known=files)
    folders = split_names(list_folder(path)[1])
    splits = {folder: kind for folder, kind in folders.items() if _tables_in(path / folder)}
    if not splits:
        return None
    folder = pick_split(splits, split, str(path))[0]
    return _Files(path / folder, _tables_in(path / folder), f"split {split}: folder {folder}/; ")


def _tables_in(folder: Path) -> list[str]:
    """Tables of a folder without images; results that `datasets` keeps of its own computations are none, nor lists."""
    names, _ = list_folder(folder)
    if any(is_image(os.fsencode(name)) for name in names):
        return []
    tables = (name for name in names if name.lower().endswith(TABLE_SUFFIXES) and not is_text(os.fsencode(name)))
    return [name for name in tables if not re.fullmatch(r"cache-.*\.arrow", name)]


def tables_of_split(files: Sequence[str], split: str, where: str) -> tuple[list[str], str]:
    """The files of a split by their names, and how they were chosen (see `of_split`)."""
    stems = {file: file.rpartition("/")[2].rpartition(".")[0] for file in files}
    chosen, rule = of_split(stems, split, where)
    return chosen, rule + missing_shards([stems[file] for file in chosen])


def _saved(path: Path, split: str) -> _Files | None:
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
    return _Files(path, listed, rule, "saved data set")


def _json(file: Path, key: str) -> list[Any]:
    try:
        return list(json.loads(file.read_bytes())[key])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} cannot be read: {error!r}; save the data set again with save_to_disk") from error
