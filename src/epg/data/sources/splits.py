"""Splits: how they are spelled, and which folders of a source hold the one that is wanted, however deep they lie."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache

from epg.data.sources.base import readable
from epg.errors import DataError

# What may be asked for, and the splits tried for it in turn: "test" falls back to a validation set, as ImageNet has no
# other.
SPLIT_NAMES = {
    "train": ("train",),
    "test": ("test", "validation"),
    "validation": ("validation",),
    "val": ("validation",),
}
_SPELLINGS = {
    "train": "train training trn trainval",
    "test": "test testing tst holdout heldout",
    "validation": "validation valid val validate dev eval evaluation",
    "unlabelled": "unlabeled unlabelled unsupervised extra pred predict",
}
WORDS = {word: split for split, words in _SPELLINGS.items() for word in words.split()}
# Words that say nothing of their own beside a split, also grown together with it: train_images, testset, valdir
_noise = "set|sets|image|images|imgs|img|data|dataset|split|of|part|shard|dir|folder|files"
NOISE = frozenset(_noise.split("|"))
_grown = re.compile(rf"(?:{_noise})?({'|'.join(WORDS)})(?:{_noise})?")


class NoSplitError(DataError):
    """The source has no such split; callers may fall back to another."""


def check_split(split: str) -> tuple[str, ...]:
    """The splits to try for what was asked for. Raises NoSplitError for an unknown word."""
    if split not in SPLIT_NAMES:
        raise NoSplitError(f"unknown split {split!r}: choose one of {', '.join(SPLIT_NAMES)}")
    return SPLIT_NAMES[split]


@lru_cache(2**12)
def spelled(name: str) -> tuple[str, str] | None:
    """The split that a name has one word of, and what is left of the name: "train2017" -> ("train", "")."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    words = [match[1] if (match := _grown.fullmatch(word)) else word for word in re.findall("[a-z]+", apart.lower())]
    found = [WORDS[word] for word in words if word in WORDS]
    rest = [word for word in words if word not in WORDS and word not in NOISE]
    return (found[0], " ".join(rest)) if len(found) == 1 else None


def split_names(names: Collection[str]) -> dict[str, str]:
    """Which of some neighbouring names are splits, and of which kind.

    A name without other words is one (Train, test-set, val2017); one with others (seg_train, DIV2K_valid_HR) where a
    neighbour differs from it in the split alone.
    """
    read = {name: parts for name in names if (parts := spelled(name)) is not None}
    kinds: dict[str, set[str]] = {}
    for split, rest in read.values():
        kinds.setdefault(rest, set()).add(split)
    return {name: split for name, (split, rest) in read.items() if not rest or len(kinds[rest]) > 1}


def pick_split(splits: dict[str, str], wanted: str, where: str) -> list[str]:
    """The names of the split that is wanted. Raises NoSplitError where there is none."""
    for split in check_split(wanted):
        if chosen := sorted(name for name, kind in splits.items() if kind == split):
            return chosen
    raise NoSplitError(f"{where} has no {wanted!r} split, only {', '.join(sorted(splits))}")


def refuse_split(wanted: str, where: str) -> None:
    """Raises NoSplitError for any other split than train of what is not divided."""
    check_split(wanted)
    if wanted != "train":
        raise NoSplitError(f"{where} has no {wanted!r} split: no folder or file of it is called {wanted}")


@dataclass(frozen=True)
class Chosen:
    """Which folders hold the images of a split: those of `inside`, all below `prefix`."""

    prefix: bytes
    inside: frozenset[bytes]
    rule: str
    """Empty where nothing is divided into splits."""


def choose(folders: Sequence[bytes], split: str, where: str) -> Chosen:
    """The folder that holds a split, however deep; everything where no folder is called by one.

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
