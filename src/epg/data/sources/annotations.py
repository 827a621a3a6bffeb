"""Label files beside images: metadata.csv and .jsonl, dataset.json, label lists, .cls and .json of each image."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from epg.data.sources.base import Labelled, Rejected, SourceOptions, readable
from epg.data.sources.labels import LABEL_WORDS, find_label_column, is_identity, labels_of, rule_of, unlabelled
from epg.data.sources.lists import Index, Row, headless, plain, rows_of, split_column
from epg.data.sources.names import Names
from epg.data.sources.splits import pick_split
from epg.errors import DataError

METADATA = (b"metadata.csv", b"metadata.jsonl", b"metadata.parquet")
DATASET = b"dataset.json"
_file_words = (
    "filename file image path imagepath filepath img imagename imagefilename imagefile imgname name imageid imgpath id"
)
FILE_WORDS = _file_words.split()  # columns that name images, without signs, in small letters
PEEKED = 64  # texts that tell words from captions

Read = Callable[[bytes], bytes]


@dataclass
class Described:
    """What a label file says: which of the images it names (N,), their labels, and what went wrong."""

    chosen: NDArray[np.int64]
    labelled: Labelled
    rule: str
    rejected: list[Rejected] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    used: str = ""
    """How the names of the files end that said so."""
    divided: bool = False
    """It names a split for each image, and only the wanted one was taken."""

    def reads(self, name: bytes) -> bool:
        """Whether this is one of the files that said so."""
        return self.used != "" and readable(name).endswith(self.used)


def unlabelled_all(names: Names, rule: str, used: str = "") -> Described:
    """All images, without labels."""
    return Described(np.arange(len(names)), unlabelled(len(names)), rule, used=used)


def by_rows(
    names: Names, content: bytes, file: str, folder: str, options: SourceOptions, partial: bool, divided: bool
) -> Described:
    """The images that the rows of a label file name, with labels by its column; those of the wanted split, where a
    column names splits and images are not `divided` by folders yet.

    `folder` is where the file lies (with a final slash); `partial`: it may name images of other splits, too. Raises
    DataError where no column names images.
    """
    if file.endswith(".txt") and (listed := _one_each(content)):
        return _in_order(names, listed, file)
    index, taken = Index(names), set[int]()
    rows, columns = rows_of(content, file)
    if any(index.find(name, folder) is not None for name in columns):  # no header: the first row names an image
        rows, columns = headless(content)
    column, total = _file_column(rows, columns, file), len(rows)
    index.settle([row.get(column) for row in rows], folder)
    rows, others, rule = (rows, [], "") if divided else _one_split(rows, columns, options.split, file)
    chosen, kept, rejected = [], [], []
    label, notes = find_label_column(columns, lambda name: [_hashable(row.get(name)) for row in rows], options, file)
    for row in rows:
        place = index.find(row.get(column), folder)
        if place is None and partial:
            continue
        name = readable(plain(str(row.get(column))).encode("utf-8", "surrogateescape"))
        if place is None or place in taken:
            reason = "there is no such image" if place is None else "it is named twice"
            rejected.append(Rejected(name, f"{file} names it, but {reason}"))
            continue
        taken.add(place)
        if label is not None and row.get(label) in (None, ""):
            rejected.append(Rejected(name, f"{file} has no {label} for it"))
            continue
        chosen.append(place)
        kept.append(row)
    if not chosen:
        raise DataError(f"{file}: none of the {total} images that its column {column} names is there")
    labelled = labels_of([row[label] for row in kept], f"{file}, column {label}") if label else unlabelled(len(kept))
    elsewhere = {place for row in others if (place := index.find(row.get(column), folder)) is not None}
    if (left := len(names) - len(taken | elsewhere)) > 0:
        notes.append(f"{left} images that no row of {file} names were left out")
    if index.foreign:
        notes.append(f"paths of {file} are taken without {index.foreign}, which is not here")
    if label is None and options.labels != "none" and len(columns) > 1:
        rest = ", ".join(name for name in columns if name != column)
        notes.append(f"labels could be in {file}: {options.flag('label-column')} one of {rest}")
    if label is None and options.labels == "auto" and any(b"/" in names[k][len(folder) :] for k in chosen):
        notes.append(f"folders are no classes because of {file}; {options.flag('labels folder')} uses them instead")
    told = rule_of(labelled, f"column {label} of {file}") if label else f"no labels: {file} has no column of them"
    order = np.array(chosen, dtype=np.int64)
    return Described(order, labelled, rule + told, rejected, notes, file, divided=bool(rule))


def _one_split(rows: list[Row], columns: list[str], split: str, file: str) -> tuple[list[Row], list[Row], str]:
    """The rows of a split, those of the others, and how they were told apart; all where no column divides them."""
    if (found := split_column(rows, columns)) is None:
        return rows, [], ""
    column, splits = found
    wanted = set(pick_split(splits, split, file))
    ours, others = ([row for row in rows if (str(row.get(column)) in wanted) == inside] for inside in (True, False))
    return ours, others, f"split {split}: {', '.join(sorted(wanted))} in column {column} of {file}; "


def _file_column(rows: list[Row], columns: list[str], file: str) -> str:
    bare = {re.sub("[^a-z]", "", name.lower()): name for name in reversed(columns)}
    found = next((bare[word] for word in FILE_WORDS if word in bare), None)
    if found is None or not all(row.get(found) not in (None, "") for row in rows):
        raise DataError(
            f"{file}: every row needs a file_name, the path of an image relative to this file; its columns are "
            f"{', '.join(columns)}"
        )
    return found


def _hashable(value: object) -> object:
    return str(value) if isinstance(value, (list, dict)) else value


def _one_each(content: bytes) -> list[str]:
    """The lines of a file of one word in each, [] for any other."""
    lines = content.decode("utf-8-sig", "replace").split("\n")
    words = [line.strip() for line in lines if line.strip()]
    return words if words and not any(set(word) & set(" ,;\t") for word in words) else []


def _in_order(names: Names, labels: list[str], file: str) -> Described:
    """One label in each line, for the images in the order of their names, as ImageNet's ground truth has them."""
    if len(labels) != len(names):
        raise DataError(f"{file}: {len(labels)} lines for {len(names)} images; one label for each image is needed")
    order = np.array(sorted(range(len(names)), key=names.__getitem__), dtype=np.int64)
    rule = f"labels: lines of {file}, for the images in the order of their names"
    return Described(order, labels_of(labels, file), rule, used=file)


def by_dataset_json(names: Names, content: bytes, file: str, folder: str, partial: bool) -> Described | None:
    """The labels of an EDM or StyleGAN archive: {"labels": [[path, label], ...]}, or null for none.

    `partial`: it may name images of other splits, too. None where the file is another program's. Raises DataError for
    labels that are not one number, and for two labels of one image.
    """
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} cannot be read: {error}") from error
    if not isinstance(data, dict) or "labels" not in data:
        return None
    if not data["labels"]:
        return unlabelled_all(names, f"no labels: {file} has none, and folders only number files", file)
    pairs = data["labels"].items() if isinstance(data["labels"], dict) else data["labels"]
    given: dict[str, object] = {}
    try:
        for path, label in pairs:
            if given.setdefault(plain(str(path)), label) != label:
                raise DataError(f"{file}: {path} has two labels, {given[plain(str(path))]} and {label}; remove one")
    except (TypeError, ValueError) as error:
        raise DataError(f"{file}: labels must be [path, label] pairs") from error
    keys = [plain(name.decode("utf-8", "surrogateescape")).removeprefix(folder) for name in names]
    kept = [i for i, key in enumerate(keys) if key in given]
    if not kept:
        raise DataError(f"{file}: names none of the {len(names)} images; pass --labels none or folder to ignore it")
    labelled = labels_of([given[keys[i]] for i in kept], file)
    notes = []
    if len(kept) < len(names):
        notes.append(f"{len(names) - len(kept)} images that {file} does not name were left out")
    if not partial and (gone := given.keys() - {keys[i] for i in kept}):
        notes.append(f"{len(gone)} images that {file} names are not there, such as {min(gone)}")
    return Described(np.array(kept, dtype=np.int64), labelled, rule_of(labelled, file), notes=notes, used=file)


def by_sidecars(
    names: Names, texts: dict[bytes, int], read: Read, options: SourceOptions, suffix: bytes
) -> Described | None:
    """Labels in a file beside each image (0001.jpg, 0001.cls), as WebDataset has them.

    None where most images have no such file, or where it holds nothing like a label.
    """
    beside = (_beside(name, texts, suffix) for name in names)
    found = {i: text for i, text in enumerate(beside) if text is not None}
    if len(found) * 2 < len(names):
        return None
    if suffix == b".txt" and options.label_column is None and not _are_words(list(found.values()), read):
        return None  # captions, boxes
    contents = [read(text) for text in found.values()]
    what, label = f"the *{suffix.decode()} of each image", options.label_column
    if suffix == b".json":
        rows = [_object(content, what) for content in contents]
        columns = list(dict.fromkeys(str(key) for row in rows[:100] for key in row))
        if label is None and not {name.lower() for name in columns} & set(LABEL_WORDS):
            return None
        label, _ = find_label_column(columns, lambda name: [_hashable(r.get(name)) for r in rows], options, what)
        if label is None:
            return None
        values: Sequence[object] = [row.get(label) for row in rows]
        what = f"{label} in {what}"
    else:
        values = [content.decode("utf-8", "replace").strip() for content in contents]
    if options.label_column is None and is_identity(values):
        return None
    missing = (names[i] for i in range(len(names)) if i not in found)
    rejected = [Rejected(readable(name), f"it has no *{suffix.decode()} with a label") for name in missing]
    chosen, labelled = np.array(list(found), dtype=np.int64), labels_of(values, what)
    return Described(chosen, labelled, rule_of(labelled, what), rejected, used=suffix.decode())


def _are_words(texts: list[bytes], read: Read) -> bool:
    """Whether some of the files beside images hold one word each, and the same ones again and again."""
    words = [read(text).decode("utf-8", "replace").strip() for text in texts[:PEEKED]]
    return all(len(word.split()) == 1 for word in words) and not is_identity(words)


def _beside(name: bytes, texts: dict[bytes, int], suffix: bytes) -> bytes | None:
    folder, slash, base = name.rpartition(b"/")
    stems = (base.rpartition(b".")[0], base.partition(b".")[0])
    return next((text for stem in stems if (text := folder + slash + stem + suffix) in texts), None)


def _object(content: bytes, what: str) -> Row:
    try:
        row = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{what}: {error}") from error
    return row if isinstance(row, dict) else {"label": row}
