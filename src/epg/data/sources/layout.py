"""From relative paths to splits and classes: the same rules for folders, archives and remote folders."""

import csv
import io
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epg.data.decode import EXTENSIONS
from epg.data.sources.base import Found, Rejected, SourceOptions, labels_of, readable
from epg.data.sources.names import Names
from epg.data.splits import ALL_SPLITS, SPLIT_NAMES
from epg.errors import DataError, UserError

METADATA = (b"metadata.csv", b"metadata.jsonl")
Labelled = tuple[NDArray[np.int64], tuple[str, ...]]
SUFFIXES = tuple(extension.encode() for extension in EXTENSIONS)
LONGEST = max(map(len, SUFFIXES))


@lru_cache(2**12)
def is_image_suffix(end: bytes) -> bool:
    """Whether the last `LONGEST` bytes of a path are those of an image, in any case: few ends recur in millions."""
    return end.lower().endswith(SUFFIXES)


def is_image(name: bytes) -> bool:
    """Whether a path ends like an image (in any case) and no part of it is hidden."""
    return is_image_suffix(name[-LONGEST:]) and not is_hidden(name)


def is_hidden(name: bytes) -> bool:
    parts = name.replace(b"\\", b"/").split(b"/")
    return any(part.startswith(b".") and part not in (b".", b"..") for part in parts) or b"__MACOSX" in parts


def is_unsafe(name: bytes) -> bool:
    """Whether a member name points outside its archive (it is never used as a path, but it is a bad sign)."""
    parts = name.replace(b"\\", b"/").split(b"/")
    return name.startswith((b"/", b"\\")) or b".." in parts or b"\0" in name or parts[0].endswith(b":")


def common_parent(folders: Collection[bytes]) -> bytes:
    """The folder (with a final slash) that holds all of these folders, itself none of them, or nothing."""
    if not folders:
        return b""
    parents = [folder.split(b"/")[:-1] for folder in folders]
    low, high = min(parents), max(parents)
    count = 0
    while count < min(len(low), len(high)) and low[count] == high[count]:
        count += 1
    return b"".join(part + b"/" for part in low[:count])


def split_prefix(folders: Collection[bytes], split: str, where: str) -> bytes:
    """The folder (with a final slash) that holds `split`, or nothing where no folder is one of a split."""
    if split not in SPLIT_NAMES:
        raise UserError(f"--split {split}: choose one of {', '.join(SPLIT_NAMES)}")
    tops = {folder.split(b"/", 1)[0].decode("utf-8", "replace") for folder in folders if folder}
    present = [name for name in ALL_SPLITS if name in tops]
    others = sorted(tops - set(ALL_SPLITS))
    if others and len(present) > 1:
        raise DataError(
            f"{where} holds split folders ({', '.join(present)}) beside others ({others[0]}): name the one to use"
        )
    if not present or others:
        if split != "train":
            raise UserError(f"--split {split}: {where} has no folder {' or '.join(SPLIT_NAMES[split])}")
        return b""
    for name in SPLIT_NAMES[split]:
        if name in present:
            return f"{name}/".encode()
    raise UserError(f"--split {split}: {where} has only {', '.join(present)}")


def folder_labels(
    names: Names, folders: Sequence[bytes], which: NDArray[np.int64], options: SourceOptions, where: str
) -> Labelled:
    """Labels by the first folder of each name, where name i lies in `folders[which[i]]`.

    Raises DataError where some images lie in folders and others do not.
    """
    flat = np.flatnonzero(np.array([not folder for folder in folders], dtype=bool)[which])
    if options.labels == "none" or (options.labels == "auto" and len(flat) == len(names)):
        return np.full(len(names), -1, dtype=np.int64), ()
    if len(flat):
        raise DataError(
            f"{where}: {len(flat)} images, such as {readable(names[flat[0]])}, lie in no class folder, "
            f"{len(names) - len(flat)} others do. Move "
            "them into class folders, or pass --labels none to ignore folders"
        )
    tops = [folder.partition(b"/")[0] for folder in folders]
    classes = sorted({tops[number] for number in np.unique(which)})
    label = {name: number for number, name in enumerate(classes)}
    labels = np.array([label.get(top, -1) for top in tops], dtype=np.int64)[which]
    return labels, tuple(readable(name) for name in classes)


def metadata_rows(content: bytes, file: str) -> list[dict[str, Any]]:
    """The rows of a metadata.csv or metadata.jsonl. Raises DataError naming the line."""
    try:
        text = content.decode("utf-8-sig")
        if file.endswith(".csv"):
            rows: list[dict[str, Any]] = list(csv.DictReader(io.StringIO(text, newline=""), restval=""))
        else:
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (UnicodeDecodeError, csv.Error, ValueError, RecursionError) as error:
        raise DataError(f"{file} cannot be read: {error}. It must be UTF-8 text with a column file_name") from error
    if not rows or not all(isinstance(row, dict) and row.get("file_name") for row in rows):
        raise DataError(f"{file}: every row needs a file_name, the path of an image relative to this file")
    return rows


def apply_metadata(
    found: Found, rows: list[dict[str, Any]], options: SourceOptions, file: str
) -> tuple[NDArray[np.int64], list[Rejected], Labelled]:
    """Which of the listed images the metadata names, rows that are rejected, and labels by column.

    Raises DataError where the label column is missing.
    """
    place = {name: i for i, name in enumerate(found.names)}
    chosen, values, rejected = [], [], []
    column = label_column(rows, options, file)
    for row in rows:
        name = str(row["file_name"]).replace("\\", "/").removeprefix("./").encode("utf-8", "surrogateescape")
        index = place.pop(name, None)
        if index is None:
            reason = f"{file} names it, but there is no such image, or it is named twice"
            rejected.append(Rejected(readable(name), reason))
        elif column is not None and row.get(column) in (None, ""):
            rejected.append(Rejected(readable(name), f"{file} has no {column} for it"))
        else:
            chosen.append(index)
            values.append(row[column] if column else None)
    labels = labels_of(values) if column else (np.full(len(chosen), -1, dtype=np.int64), ())
    return np.array(chosen, dtype=np.int64), rejected, labels


def label_column(rows: list[dict[str, Any]], options: SourceOptions, file: str) -> str | None:
    """Which column holds the labels; None: none does."""
    if options.labels in ("none", "folder"):
        return None
    columns = list(dict.fromkeys(key for row in rows for key in row))
    if options.label_column is not None:
        if options.label_column not in columns:
            raise DataError(f"--label-column {options.label_column}: {file} has only {', '.join(map(str, columns))}")
        return options.label_column
    if "label" in columns:
        return "label"
    if options.labels == "column":
        raise DataError(
            f"--labels column: {file} has no column label; choose one of {', '.join(map(str, columns))} "
            "with --label-column"
        )
    return None


@dataclass(frozen=True)
class Arranged:
    """The images to use, named relative to `prefix`; which of the listing they are (N,); their labels (N,)."""

    found: Found
    chosen: NDArray[np.int64]
    prefix: bytes
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]


def arrange(
    found: Found,
    read_extra: Callable[[bytes], bytes | None],
    options: SourceOptions,
    where: str,
    *,
    archive: bool = False,
) -> Arranged:
    """Split, metadata and labels of a listing. Raises DataError for one without images.

    Args:
        read_extra: the content of a file of the source by name, None if there is none.
        archive: ignore folders that hold everything.
    """
    folders, which = found.names.folders()
    prefix = common_parent(folders) if archive else b""
    prefix += split_prefix({folder[len(prefix) :] for folder in folders}, options.split, where)
    inside = np.array([(folder + b"/").startswith(prefix) for folder in folders], dtype=bool)
    chosen = np.flatnonzero(inside[which])
    found = found.take(chosen)
    found = replace(found, names=found.names.without(prefix))
    labels: Labelled | None = None
    for extra in METADATA:
        content = read_extra(prefix + extra)
        if content is not None and options.labels != "folder":
            file = extra.decode()
            kept, rejected, labels = apply_metadata(found, metadata_rows(content, file), options, file)
            found, chosen = replace(found.take(kept), rejected=[*found.rejected, *rejected]), chosen[kept]
            break
    if labels is None:
        if options.labels == "column" or options.label_column is not None:
            raise DataError(f"{where} holds no metadata.csv or metadata.jsonl; pass --labels folder or none")
        relative = [folder[len(prefix) :] for folder in folders]
        labels = folder_labels(found.names, relative, which[chosen], options, where)
    if not len(found.names):
        unusable = found.rejected
        some = f"; {len(unusable)} rejected, such as {unusable[0].name}: {unusable[0].reason}" if unusable else ""
        raise DataError(f"{where} holds no images; files looked for: *{', *'.join(EXTENSIONS)}{some}")
    return Arranged(found, chosen, prefix, *labels)
