"""From relative paths to splits and classes: the same rules for folders, archives, shards and remote folders."""

import itertools
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

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
from epg.data.sources.kinds import kind_of
from epg.data.sources.labels import natural
from epg.data.sources.listing import Listing
from epg.data.sources.names import Names
from epg.data.sources.notes import bare, doubtful, left_labels, left_splits, named_by_class, nothing
from epg.data.sources.splits import Chosen, choose, refuse_split
from epg.data.sources.suspects import (
    choose_member,
    refuse_chunks,
    refuse_label_maps,
    refuse_maps_beside,
    refuse_parts,
)
from epg.errors import DataError

_plain = "images image imgs img data jpg jpeg png jpegimages pictures photos raw all"
PLAIN = frozenset(_plain.split())  # a single folder of such a name holds the images, and is no class


def arrange(
    found: Listing,
    read: Callable[[bytes, int], bytes],
    options: SourceOptions,
    where: str,
    rule: str = "",
    *,
    divided: bool = False,
) -> Images:
    """Split, samples and labels of a listing. Raises DataError for one without images, or that can be read two ways.

    Args:
        read: the content of a file by its name and its number in the container.
        rule: how the container was chosen, for people to read.
        divided: the container is of the wanted split already.
    """
    if not len(found.names):
        raise DataError(nothing(found, where))

    def read_text(name: bytes) -> bytes:
        try:
            return read(name, found.texts[name])
        except DataError as error:
            raise DataError(f"{readable(name)}: {error}") from error

    folders, which = found.names.folders()
    place = choose(folders, options.split, where)
    divided = divided or bool(place.rule)
    chosen = np.flatnonzero(np.array([folder in place.inside for folder in folders])[which])
    chosen = chosen[choose_member(found.names.take(chosen), options, where)]
    names, _, numbers = found.take(chosen)
    described = _by_list(names, found.texts, read_text, place, options, where, divided)
    if not (divided or (described and described.divided)):
        refuse_split(options.split, where)
    described = described or _beside(names, found.texts, read_text, place, options, where)
    if described is None:
        described = by_folder(names, place, folders, which[chosen], options, where)
        short = names.without(place.prefix)
        _refuse_suspects(short, lambda i: read(names[i], int(numbers[i])), described, options, where)
        described.notes.extend(bare(found, place.prefix, described))
    kept = chosen[described.chosen]
    names, sizes, numbers = found.take(kept)
    if not len(names):
        raise DataError(nothing(found, where))
    notes = [*found.notes, *described.notes, *left_labels(found, described, options), *doubtful(described, options)]
    notes += [] if divided or described.divided else left_splits(found, described)
    unused = Counter(kind_of(name) for name in found.texts if not described.reads(name))
    overview = Overview(f"{rule}{place.rule}{described.rule}", (found.kinds + unused).most_common(), notes)
    rejected = [*found.rejected, *described.rejected]
    short = names.without(place.prefix)
    return Images(short, sizes, *described.labelled, overview, rejected, numbers, place.prefix)


def _by_list(
    names: Names,
    texts: dict[bytes, int],
    read: Read,
    place: Chosen,
    options: SourceOptions,
    where: str,
    divided: bool,
) -> Described | None:
    """What a list of labels says of the images, the nearest first; None where there is none."""
    if options.labels == "folder":
        return None
    parts = place.prefix.split(b"/")[:-1]
    chain = [b"".join(part + b"/" for part in parts[:k]) for k in range(len(parts), -1, -1)]
    any_case = {name.lower(): name for name in texts}
    wanted = (options.label_file.encode("utf-8", "surrogateescape"),) if options.label_file else (*METADATA, DATASET)
    for folder, file in itertools.product(chain, wanted):
        if (name := any_case.get((folder + file).lower())) is None:
            continue
        content, told, above = read(name), readable(folder), folder != place.prefix
        if file != DATASET or options.label_file:
            return by_rows(names, content, readable(name), told, options, above, divided)
        if (found := by_dataset_json(names, content, file.decode(), told, above)) is not None:
            return unlabelled_all(names, "no labels: asked for") if options.labels == "none" else found
    if options.label_file:
        listed = ", ".join(sorted(map(readable, texts))[:8]) or "no label files"
        raise DataError(f"{options.flag('label-file', options.label_file)}: {where} has no such file, only {listed}")
    return None


def _beside(
    names: Names, texts: dict[bytes, int], read: Read, place: Chosen, options: SourceOptions, where: str
) -> Described | None:
    """What a file beside each image says of it; None where there are none."""
    if not options.by_column:
        return None
    asked = options.labels == "column" or options.label_column is not None
    flat = all(b"/" not in name[len(place.prefix) :] for name in names)
    for suffix in (b".cls", b".cls.txt", b".json", b".txt") if asked or flat else (b".cls", b".cls.txt"):
        if (found := by_sidecars(names, texts, read, options, suffix)) is not None:
            return found
    if asked:
        raise DataError(
            f"{where} holds no metadata.csv or metadata.jsonl, nor *.cls, *.json or *.txt with such labels; pass "
            f"{options.flag('labels folder')} or none, or name a file with {options.flag('label-file')}"
        )
    return None


def by_folder(
    names: Names,
    place: Chosen,
    folders: Sequence[bytes],
    which: NDArray[np.int64],
    options: SourceOptions,
    where: str,
) -> Described:
    """Labels by the first folder of each name below `place`, where name i lies in `folders[which[i]]`.

    Raises DataError where some images lie in folders and others do not.
    """
    if options.labels == "none":
        return unlabelled_all(names, "no labels: asked for")
    relative = [folder[len(place.prefix) :] for folder in folders]
    present = {relative[number] for number in np.unique(which)}
    tops = {folder.partition(b"/")[0] for folder in present}
    inside = np.array([folder != b"" for folder in relative])[which]
    only = readable(next(iter(tops))).lower() if len(tops) == 1 else ""
    if options.labels == "auto" and (not inside.any() or only in PLAIN):
        all_of_them = unlabelled_all(names, "no labels: there are no class folders")
        all_of_them.notes.extend(named_by_class(names))
        return all_of_them
    if not inside.all():
        raise DataError(
            f"{where}: {int((~inside).sum())} images, such as {readable(names[int(inside.argmin())])}, lie in no class "
            f"folder, {int(inside.sum())} others do, such as {readable(names[int(inside.argmax())])}. Move "
            f"them into class folders, or pass {options.flag('labels none')} to ignore folders"
        )
    classes = natural([readable(top) for top in tops])
    number = {name: k for k, name in enumerate(classes)}
    labels = [number.get(readable(folder.partition(b"/")[0]), -1) for folder in relative]
    labelled = np.array(labels, dtype=np.int64)[which], tuple(classes)
    deeper = [f"{len(present)} folders lie below or beside each other ({readable(max(present, key=len))}): only the "
              "first of each path is its class"] if len(present) > len(tops) else []  # fmt: skip
    return Described(np.arange(len(names)), labelled, "labels: the folder of each image", notes=deeper)


def _refuse_suspects(
    names: Names, read: Callable[[int], bytes], described: Described, options: SourceOptions, where: str
) -> None:
    """Raises DataError for what looks like classes or pictures and may be none; not where labels were asked for."""
    if options.labels == "auto" and described.labelled[1]:
        refuse_label_maps(names, read, options, where)
        refuse_chunks(names, options, where)
        refuse_parts(names.folders()[0], options, where)
    if options.labels == "auto":
        refuse_maps_beside(names, options, where)
