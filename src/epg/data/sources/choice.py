"""Which folders of a source hold the images of a split, however deep they lie."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from epg.data.sources.base import readable
from epg.data.splits import pick as pick_split
from epg.data.splits import refuse_split, split_names
from epg.errors import DataError


@dataclass(frozen=True)
class Chosen:
    """Which folders hold the images of a split: those of `inside` (F,), all below `prefix`."""

    prefix: bytes
    inside: NDArray[np.bool_]
    rule: str


def choose(folders: Sequence[bytes], counts: NDArray[np.int64], split: str, where: str) -> Chosen:
    """The folder that holds a split, however deep; everything where nothing is divided into splits.

    Folders that hold nothing but one other folder are passed through. Raises NoSplitError, or DataError where split
    folders lie beside others.
    """
    inside, prefix, rule = np.ones(len(folders), dtype=bool), b"", ""
    while True:
        tops = _tops(folders, counts, inside, prefix)
        names = {readable(top): top for top in tops if top}
        splits = split_names(names) if not rule else {}
        if splits and (chosen := _one_split(splits, names, tops, split, where, prefix)):
            rule = f"split {split}: folder {readable(prefix)}{chosen}/ (of {', '.join(sorted(splits))}); "
            prefix += names[chosen] + b"/"
        elif len(tops) == 1 and b"" not in tops and not _holds_images(folders, inside, prefix + next(iter(tops))):
            prefix += next(iter(tops)) + b"/"
        else:
            break
        inside &= np.array([(folder + b"/").startswith(prefix) for folder in folders], dtype=bool)
    if not rule and (below := _splits_below(folders, inside, prefix)):
        kinds = split_names(set(below.values()))
        wanted = set(pick_split(kinds, split, where))
        inside &= np.array([below.get(folder) in wanted for folder in folders], dtype=bool)
        rule = f"split {split}: folders {', '.join(sorted(wanted))} below each class; "
    if not rule:
        refuse_split(split, where)
    return Chosen(prefix, inside, rule)


def _tops(
    folders: Sequence[bytes], counts: NDArray[np.int64], inside: NDArray[np.bool_], prefix: bytes
) -> dict[bytes, int]:
    """The first folder below a prefix of each image, and how many images it has; b"" for those right there."""
    tops: dict[bytes, int] = {}
    for number in np.flatnonzero(inside).tolist():
        top = folders[number][len(prefix) :].partition(b"/")[0]
        tops[top] = tops.get(top, 0) + int(counts[number])
    return tops


def _holds_images(folders: Sequence[bytes], inside: NDArray[np.bool_], folder: bytes) -> bool:
    return any(folders[number] == folder for number in np.flatnonzero(inside).tolist())


def _one_split(
    splits: dict[str, str], names: dict[str, bytes], tops: Collection[bytes], wanted: str, where: str, prefix: bytes
) -> str | None:
    """The name of the split folder that is wanted; None where what looks like one is a class beside others."""
    place = f"{where}/{readable(prefix)}".rstrip("/")
    others = sorted(set(names) - set(splits)) + (["images that lie in no folder"] if b"" in tops else [])
    if others and len(splits) == 1:
        return None
    if others:
        raise DataError(
            f"{place} holds split folders ({', '.join(sorted(splits))}) beside others ({others[0]}). If they are "
            f"splits, name the one to use: {place}/{min(splits)}; if all are classes, rename them so that they do not "
            "look like splits"
        )
    found = pick_split(splits, wanted, place)
    if len(found) > 1:
        raise DataError(
            f"{place} has several folders of the split {wanted!r}: {', '.join(found)}. Name the one to use, such as "
            f"{place}/{found[0]}"
        )
    return found[0]


def _splits_below(folders: Sequence[bytes], inside: NDArray[np.bool_], prefix: bytes) -> dict[bytes, str]:
    """Folders by the split that lies below their class (cat/train, cat/test, dog/train), {} where that is not so."""
    below = {}
    for number in np.flatnonzero(inside).tolist():
        _, slash, rest = folders[number][len(prefix) :].partition(b"/")
        if not slash:
            return {}
        below[folders[number]] = readable(rest.partition(b"/")[0])
    kinds = split_names(set(below.values()))
    return below if len(set(kinds.values())) > 1 and set(below.values()) <= set(kinds) else {}
