"""Which folders of a source hold the images of a split, however deep they lie."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from epg.data.sources.base import readable
from epg.data.sources.splits import pick as pick_split
from epg.data.sources.splits import refuse_split, split_names
from epg.errors import DataError


@dataclass(frozen=True)
class Chosen:
    """Which folders hold the images of a split: those of `inside`, all below `prefix`."""

    prefix: bytes
    inside: frozenset[bytes]
    rule: str


def choose(folders: Sequence[bytes], split: str, where: str) -> Chosen:
    """The folder that holds a split, however deep; everything where nothing is divided into splits.

    `folders` are those with images. Folders that hold nothing but one other folder are passed through. Raises
    NoSplitError, or DataError where split folders lie beside others.
    """
    inside, prefix, rule = list(folders), b"", ""
    while True:
        tops = {folder[len(prefix) :].partition(b"/")[0] for folder in inside}  # b"" for images right there
        names = {readable(top): top for top in tops if top}
        splits = {} if rule else split_names(names)
        if splits and (chosen := _one_split(splits, names, tops, split, where, prefix)):
            rule = f"split {split}: folder {readable(prefix)}{chosen}/ (of {', '.join(sorted(splits))}); "
            prefix += names[chosen] + b"/"
        elif len(tops) == 1 and b"" not in tops and prefix + min(tops) not in inside:
            prefix += min(tops) + b"/"
        else:
            break
        inside = [folder for folder in inside if (folder + b"/").startswith(prefix)]
    if not rule and (below := _splits_below(inside, prefix)):
        wanted = set(pick_split(split_names(set(below.values())), split, where))
        inside = [folder for folder in inside if below[folder] in wanted]
        rule = f"split {split}: folders {', '.join(sorted(wanted))} below each class; "
    if not rule:
        refuse_split(split, where)
    return Chosen(prefix, frozenset(inside), rule)


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


def _splits_below(folders: Sequence[bytes], prefix: bytes) -> dict[bytes, str]:
    """Folders by the split that lies below their class (cat/train, cat/test, dog/train), {} where that is not so."""
    below = {}
    for folder in folders:
        _, slash, rest = folder[len(prefix) :].partition(b"/")
        if not slash:
            return {}
        below[folder] = readable(rest.partition(b"/")[0])
    kinds = split_names(set(below.values()))
    return below if len(set(kinds.values())) > 1 and set(below.values()) <= set(kinds) else {}
