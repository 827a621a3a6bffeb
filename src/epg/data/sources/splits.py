"""How splits are spelled: of a folder, a file or a shard."""

import re
from collections.abc import Collection
from functools import lru_cache

from epg.errors import DataError

# What may be asked for, and the splits tried for it in turn: "test" falls back to a validation set, as ImageNet has no
# other.
SPLIT_NAMES = {
    "train": ("train",),
    "test": ("test", "validation"),
    "validation": ("validation",),
    "val": ("validation",),
}
WORDS = {
    **dict.fromkeys(("train", "training", "trn", "trainset"), "train"),
    **dict.fromkeys(("test", "testing", "tst", "testset"), "test"),
    **dict.fromkeys(("validation", "valid", "val", "validate", "dev", "eval", "evaluation"), "validation"),
    **dict.fromkeys(("unlabeled", "unlabelled", "unsupervised", "extra"), "unlabelled"),
}
# Words that say nothing of their own beside a split: train_images, test-set, validation.data
NOISE = frozenset(
    [
        *("set", "sets", "image", "images", "imgs", "img", "data", "dataset"),
        *("split", "of", "part", "shard", "folder", "files"),
    ]
)


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
    words = re.findall("[a-z]+", apart.lower())
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


def pick(splits: dict[str, str], wanted: str, where: str) -> list[str]:
    """The names of the split that is wanted. Raises NoSplitError where there is none."""
    for split in check_split(wanted):
        chosen = sorted(name for name, kind in splits.items() if kind == split)
        if chosen:
            return chosen
    raise NoSplitError(f"{where} has no {wanted!r} split, only {', '.join(sorted(splits))}")


def refuse_split(wanted: str, where: str) -> None:
    """Raises NoSplitError for any other split than train of what is not divided."""
    check_split(wanted)
    if wanted != "train":
        raise NoSplitError(f"{where} has no {wanted!r} split: no folder or file of it is called {wanted}")
