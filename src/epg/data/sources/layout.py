"""From relative paths to splits and classes: the same rules for folders, archives, shards and remote folders."""

import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from epg.data.pixels.decode import EXTENSIONS
from epg.data.sources.annotations import (
    DATASET,
    METADATA,
    Described,
    Read,
    by_dataset_json,
    by_rows,
    by_sidecars,
    unlabelled_all,
)
from epg.data.sources.base import Images, Overview, SourceOptions, readable
from epg.data.sources.choice import Chosen, choose
from epg.data.sources.kinds import kind_of
from epg.data.sources.labels import natural
from epg.data.sources.listing import Found
from epg.data.sources.names import Names
from epg.data.sources.samples import choose_member
from epg.data.sources.suspects import refuse_chunks, refuse_label_maps, refuse_maps_beside
from epg.errors import DataError

LISTS = re.compile(rb"label|annotation|truth|class|identity|list|^(train|val|test)\.", re.IGNORECASE)  # of labels
# A single folder of such a name holds the images, and is no class.
PLAIN = frozenset(
    ("images", "image", "imgs", "img", "data", "jpg", "jpeg", "png", "jpegimages", "pictures", "photos", "raw", "all")
)


def arrange(
    found: Found,
    read_text: Read,
    read_image: Callable[[int], bytes],
    options: SourceOptions,
    where: str,
    rule: str = "",
) -> Images:
    """Split, samples and labels of a listing. Raises DataError for one without images, or that can be read two ways.

    Args:
        read_text: the content of a label file by name.
        read_image: an image by its number in the container.
        rule: how the container was chosen, for people to read.
    """
    if not len(found.names):
        raise DataError(nothing(found, where))
    read_text = partial(_read_named, read_text)
    folders, which = found.names.folders()
    place = choose(folders, options.split, where)
    chosen = np.flatnonzero(np.array([folder in place.inside for folder in folders])[which])
    chosen = chosen[choose_member(found.names.take(chosen), found.texts, options, where)]
    names, _, numbers = found.take(chosen)
    described = _described(names, found.texts, read_text, place, options, where)
    if described is None:
        relative = [folder[len(place.prefix) :] for folder in folders]
        described = _by_folder(names, relative, which[chosen], options, where)
        if options.labels == "auto" and described.labelled[1]:
            short = names.without(place.prefix)
            refuse_label_maps(short, lambda index: read_image(int(numbers[index])), options, where)
            refuse_chunks(short, options, where)
        if options.labels == "auto":
            refuse_maps_beside(names.without(place.prefix), options, where)
    kept = chosen[described.chosen]
    names, sizes, numbers = found.take(kept)
    if not len(names):
        raise DataError(nothing(found, where))
    notes = [*found.notes, *described.notes, *_left_labels(found, described, options), *_doubtful(described, options)]
    kinds = found.kinds + Counter(kind_of(name) for name in _unused(found.texts, described))
    overview = Overview(f"{rule}{place.rule}{described.rule}", kinds.most_common(), notes)
    rejected = [*found.rejected, *described.rejected]
    short = names.without(place.prefix)
    return Images(short, sizes, *described.labelled, overview, rejected, numbers, place.prefix)


def _read_named(read: Read, name: bytes) -> bytes:
    try:
        return read(name)
    except DataError as error:
        raise DataError(f"{readable(name)}: {error}") from error


def _described(
    names: Names, texts: dict[bytes, int], read: Read, place: Chosen, options: SourceOptions, where: str
) -> Described | None:
    """What a label file says of the images, the nearest first; None where there is none."""
    if options.labels == "folder":
        return None
    parts = place.prefix.split(b"/")[:-1]
    chain = [b"".join(part + b"/" for part in parts[:k]) for k in range(len(parts), -1, -1)]
    wanted = (options.label_file.encode("utf-8", "surrogateescape"),) if options.label_file else (*METADATA, DATASET)
    for folder, file in itertools.product(chain, wanted):
        if folder + file not in texts:
            continue
        content, told, above = read(folder + file), readable(folder), folder != place.prefix
        if file != DATASET or options.label_file:
            return by_rows(names, content, readable(folder + file), told, options, above)
        if (found := by_dataset_json(names, content, file.decode(), told, above)) is not None:
            return unlabelled_all(names, "no labels: asked for") if options.labels == "none" else found
    if options.label_file:
        listed = ", ".join(sorted(map(readable, texts))[:8]) or "no label files"
        raise DataError(f"{options.flag('label-file', options.label_file)}: {where} has no such file, only {listed}")
    if options.labels == "none":
        return None
    asked = options.labels == "column" or options.label_column is not None
    flat = all(b"/" not in name[len(place.prefix) :] for name in names)
    for suffix in (b".cls", b".json") if asked or flat else (b".cls",):
        if (found := by_sidecars(names, texts, read, options, suffix)) is not None:
            return found
    if asked:
        raise DataError(
            f"{where} holds no metadata.csv or metadata.jsonl, nor *.cls or *.json with such labels; pass "
            f"{options.flag('labels folder')} or none, or name a file with {options.flag('label-file')}"
        )
    return None


def _by_folder(
    names: Names, folders: Sequence[bytes], which: NDArray[np.int64], options: SourceOptions, where: str
) -> Described:
    """Labels by the first folder of each name, where name i lies in `folders[which[i]]`.

    Raises DataError where some images lie in folders and others do not.
    """
    if options.labels == "none":
        return unlabelled_all(names, "no labels: asked for")
    tops = [folder.partition(b"/")[0] for folder in folders]
    present = {tops[number] for number in np.unique(which)}
    inside = np.array([folder != b"" for folder in folders])[which]
    only = readable(next(iter(present))).lower() if len(present) == 1 else ""
    if options.labels == "auto" and (not inside.any() or only in PLAIN):
        return unlabelled_all(names, "no labels: there are no class folders")
    if not inside.all():
        raise DataError(
            f"{where}: {int((~inside).sum())} images, such as {readable(names[int(inside.argmin())])}, lie in no class "
            f"folder, {int(inside.sum())} others do, such as {readable(names[int(inside.argmax())])}. Move "
            f"them into class folders, or pass {options.flag('labels none')} to ignore folders"
        )
    classes = natural([readable(top) for top in present])
    number = {name: k for k, name in enumerate(classes)}
    labels = np.array([number.get(readable(top), -1) for top in tops], dtype=np.int64)[which]
    return Described(np.arange(len(names)), (labels, tuple(classes)), "labels: the folder of each image")


def _unused(texts: dict[bytes, int], described: Described) -> list[bytes]:
    """Label files that did not serve."""
    return [name for name in texts if not described.used or not readable(name).endswith(described.used)]


def _doubtful(described: Described, options: SourceOptions) -> list[str]:
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


def _left_labels(found: Found, described: Described, options: SourceOptions) -> list[str]:
    """How to use a label file that lies beside images without labels."""
    if len(described.labelled[1]) > 1 or described.used or options.labels == "none":
        return []
    lists = (
        name
        for name in found.texts
        if name.lower().endswith((b".csv", b".tsv", b"_truth.txt"))
        or (name.endswith(b".txt") and LISTS.search(name.rpartition(b"/")[2]))
    )
    tables = sorted(map(readable, lists))[:3]
    if not tables:
        return []
    return [
        f"{', '.join(tables)} may hold labels and was not read. To use it: "
        f"{options.flag('label-file', tables[0])} (columns file_name and label, or one label a line)"
    ]


def nothing(found: Found, where: str) -> str:
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
