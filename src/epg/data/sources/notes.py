"""What people should know about a source before they train on it, or why it cannot be used."""

import re
import unicodedata
from collections import Counter

import numpy as np

from epg.data.decode import EXTENSIONS
from epg.data.sources.annotations import Described
from epg.data.sources.base import SourceOptions, readable
from epg.data.sources.classes import some
from epg.data.sources.listing import Listing
from epg.data.sources.names import Names
from epg.data.sources.splits import spelled

LISTS = re.compile(rb"label|annotation|truth|class|identity|list|^(train|val|test)\.", re.IGNORECASE)  # of labels
SPLIT_LISTS = re.compile(rb"(list_)?(tr|te|ts|va|de|ev)", re.IGNORECASE)
_cameras = "img image dsc dscn dscf pxl photo screenshot frame"
CAMERAS = frozenset(_cameras.split())  # words of file names that say nothing
NAMES_LOOKED_AT = 1000


def bare(found: Listing, prefix: bytes, described: Described) -> list[str]:
    """Folders beside those of classes that hold no image: seldom meant to be empty."""
    tops = {readable(folder[len(prefix) :].partition(b"/")[0]) for folder in found.bare
            if folder.startswith(prefix)}  # fmt: skip
    empty = sorted(tops - {""} - set(described.labelled[1]))
    return [f"folders without an image that is read: {some(empty)}"] if empty and described.labelled[1] else []


def named_by_class(names: Names) -> list[str]:
    """A note where the files themselves seem to be called by classes: cat.0.jpg, beagle_12.jpg."""
    some_names = (names[int(i)] for i in np.unique(np.linspace(0, len(names) - 1, NAMES_LOOKED_AT).astype(np.int64)))
    stems = (readable(name.rpartition(b"/")[2]).rpartition(".")[0] for name in some_names)
    words = Counter(re.sub(r"[\W\d_]*\d+[\W\d_]*", "", stem).lower() for stem in stems)
    if "" in words or not 1 < len(words) <= sum(words.values()) / 3 or words.keys() & CAMERAS:
        return []
    return [
        f"file names may hold classes ({some(sorted(words))}), which are not read: for labels, move the images into "
        "folders of these names, or list them in a metadata.csv (file_name,label)"
    ]


def doubtful(described: Described, options: SourceOptions) -> list[str]:
    """A single class, and class names that only case, spaces, zeros or their Unicode form tell apart: seldom meant."""
    if len(described.labelled[1]) == 1:
        return [f"one class says nothing; {options.flag('labels none')} trains without classes"]
    by_fold: dict[str, list[str]] = {}
    for name in described.labelled[1]:
        fold = " ".join(unicodedata.normalize("NFC", name).casefold().split())
        by_fold.setdefault(fold.lstrip("0") if fold.isdecimal() else fold, []).append(name)
    pairs = [", ".join(map(ascii, names)) for names in by_fold.values() if len(names) > 1]
    told = "classes whose names differ in case, spaces, zeros or Unicode form alone"
    return [f"{told}: {'; '.join(pairs[:3])}"] if pairs else []


def left_labels(found: Listing, described: Described, options: SourceOptions) -> list[str]:
    """How to use a label file that lies beside images without labels."""
    if len(described.labelled[1]) > 1 or described.used or options.labels == "none":
        return []
    lists = (
        name
        for name in found.texts
        if name.lower().endswith((b".csv", b".tsv", b"_truth.txt"))
        or (name.lower().endswith((b".txt", b".json", b".jsonl")) and LISTS.search(name.rpartition(b"/")[2]))
    )
    tables = sorted(map(readable, lists))[:3]
    if not tables:
        return []
    return [
        f"{', '.join(tables)} may hold labels and was not read. To use it: "
        f"{options.flag('label-file', tables[0])} (columns file_name and label, or one label a line)"
    ]


def left_splits(found: Listing, described: Described) -> list[str]:
    """A note on lists that name the images of splits, where nothing else divides them: meta/train.txt."""
    bases = ((name, name.rpartition(b"/")[2]) for name in found.texts if not described.reads(name))
    stems = ((name, readable(base).partition(".")[0]) for name, base in bases if SPLIT_LISTS.match(base))
    lists = sorted(readable(name) for name, stem in stems if (spelled(stem) or ("", stem))[1] in ("", "list"))
    if not lists:
        return []
    return [f"{some(lists, 3)} may list the images of splits, which is not followed: all are read"]


def nothing(found: Listing, where: str) -> str:
    """Why a source holds no images: what is there instead, and what to do about it."""
    text = f"{where} holds no images"
    if found.rejected:
        first = found.rejected[0]
        text += f" that can be used; {len(found.rejected)} rejected, such as {first.name}: {first.reason}"
    kinds = ", ".join(f"{count} x {kind}" for kind, count in found.kinds.most_common(8))
    if kinds:
        text += f"; it holds {kinds}"
    for kind, cure in list(found.cures.items())[:3]:
        text += f". {kind}: {cure}"
    if found.notes:
        text += f". {found.notes[0]}"
    return f"{text}; files looked for: *{', *'.join(EXTENSIONS)}, *.parquet, *.arrow, *.npz, *.npy, *.zip, *.tar"
