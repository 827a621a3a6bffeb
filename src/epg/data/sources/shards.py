"""A folder of archives: the shards of one set, or an archive for each class, as ImageNet's own download has them."""

import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from epg.data.sources.archives import ARCHIVE_SUFFIXES, ArchiveSource, LocalFile, Open
from epg.data.sources.base import Source, SourceOptions
from epg.data.sources.kinds import is_image, list_folder
from epg.data.sources.splits import pick_split, refuse_split, split_names
from epg.errors import DataError


def open_shards(address: str, options: SourceOptions) -> Source | None:
    """A folder that holds archives and no images."""
    path = Path(address).expanduser()
    return None if not path.is_dir() else _below(path, path, options)


def _below(root: Path, folder: Path, options: SourceOptions) -> Source | None:
    """The archives of a folder, or of its folders for splits, or of the only folder in it."""
    names, folders = list_folder(folder)
    files = [name for name in names if name.lower().endswith(ARCHIVE_SUFFIXES)]
    if files and not folders and not any(is_image(os.fsencode(name)) for name in names):
        openers: list[tuple[str, Open]] = [(name, LocalFile((folder / name).resolve())) for name in files]
        beside = [name for name in names if name not in files]
        return of_archives(openers, root.resolve().name, options, whole=folder != root, beside=beside)
    if files or not folders:
        return None
    splits = split_names(folders)
    if splits and set(splits) == set(folders) and any(_has_archives(folder / name) for name in folders):
        return _below(root, folder / pick_split(splits, options.split, str(folder))[0], options)
    return _below(root, folder / folders[0], options) if len(folders) == 1 else None


def _has_archives(folder: Path) -> bool:
    return any(name.lower().endswith(ARCHIVE_SUFFIXES) for name in list_folder(folder)[0])


def of_archives(
    files: list[tuple[str, Open]],
    name: str,
    options: SourceOptions,
    *,
    whole: bool = False,
    beside: Sequence[str] = (),
) -> Source:
    """One source of several archives. `whole`: a split was chosen already; `beside`: other files that lie there.

    Shards are numbered, or named by their split; archives of other names are classes.
    """
    stems = {file: stem_of(file) for file, _ in files}
    rule = ""
    if not whole:
        chosen, rule = of_split(stems, options.split, name)
        files = [(file, opener) for file, opener in files if file in chosen]
    stems = {file: stems[file] for file, _ in files}
    numbered = bool(rule) or len(files) == 1 or are_numbered(list(stems.values()))
    if not numbered and differ_in_a_number(list(stems.values())):
        numbered = options.labels != "folder"
        if options.labels == "auto" and not missing_shards(stems.values()):
            folder, column, none = (options.flag(f"labels {kind}") for kind in ("folder", "column", "none"))
            raise DataError(
                f"{name}: {files[0][0]} to {files[-1][0]} differ in a number that does not count from 0 or 1 on: they "
                f"are shards of one set, of which some are missing, or a class each. Pass {folder} if they are "
                f"classes, {column} if each image has its label beside it, {none} for none"
            )
    archives = [(file, opener, b"" if numbered else f"{stems[file]}/".encode()) for file, opener in files]
    divided, rule = bool(rule) or whole, (rule or f"{len(files)} archives; ") + missing_shards(stems.values())
    return ArchiveSource(archives, name, options, rule, divided, beside)


def of_split(stems: Mapping[str, str], split: str, where: str) -> tuple[list[str], str]:
    """The files of a split by what they are called without their ending, and how they were chosen.

    All of them, and "", where no name has a split and train is wanted.
    """
    splits = split_names(set(stems.values()))
    if not splits:
        refuse_split(split, where)
        return sorted(stems), ""
    if other := next((file for file, stem in stems.items() if stem not in splits), None):
        raise DataError(
            f"{where}: {other} does not name its split, but {', '.join(sorted(splits)[:3])} do: call it train-... or "
            "move it away"
        )
    wanted = {splits[stem] for stem in pick_split(splits, split, where)}
    chosen = sorted(file for file in stems if splits[stems[file]] in wanted)
    return chosen, f"split {split}: {len(chosen)} of {len(stems)} files; "


def stem_of(file: str) -> str:
    suffix = next(end for end in sorted(ARCHIVE_SUFFIXES, key=len, reverse=True) if file.lower().endswith(end))
    return file[: -len(suffix)]


def differ_in_a_number(stems: list[str]) -> bool:
    """Whether names differ in one number alone, behind a sign: no WordNet ids (n01440764), which name classes."""
    return len({re.sub(r"(?<=[-_.])\d+|^\d+", "#", stem) for stem in stems}) == 1 and len(stems) > 1


def missing_shards(stems: Collection[str]) -> str:
    """How many of the shards that "00003-of-00010" speaks of are there; "" where all are, or none speaks of it."""
    found = [match for stem in stems if (match := re.search(r"(\d+)-of-0*(\d+)$", stem))]
    sets = {(match.string[: match.start()], int(match[2])) for match in found}
    there, total = len({match.string for match in found}), sum(count for _, count in sets)
    return f"only {there} of {total} shards are there; " if there < total else ""


def are_numbered(stems: list[str]) -> bool:
    """Whether names differ in one number alone, which counts from 0 or 1 on: shards, and no classes."""
    numbers = [re.findall(r"\d+", stem) for stem in stems]
    shapes = {re.sub(r"\d+", "#", stem) for stem in stems}
    if len(shapes) > 1 or not all(numbers):
        return False
    for column in zip(*numbers, strict=True):
        if len(set(column)) == len(stems):
            values = sorted(map(int, column))
            return values[0] in (0, 1) and values[-1] - values[0] == len(values) - 1
    return False
