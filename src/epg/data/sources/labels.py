"""From the values of a column to labels and class names, and which column may hold labels at all."""

import re
from collections.abc import Callable, Collection, Sequence

import numpy as np

from epg.data.sources.base import Labelled, SourceOptions
from epg.errors import DataError

# Columns that hold labels by their name, the likeliest first.
LABEL_WORDS = (
    *("label", "labels", "class", "classes", "class_name", "class_label", "classname", "label_name", "category"),
    *("categories", "category_name", "target", "targets", "y", "cls", "label_id", "class_id", "category_id"),
    *("fine_label", "class_index", "class_idx", "label_index", "label_idx", "synset", "wnid", "species", "breed"),
    *("identity", "predictionstring"),
)
FEW = 8  # images; fewer say nothing about whether a value is an identity or a class
MAX_NUMBER = 10_000


def unlabelled(count: int) -> Labelled:
    """Labels of a set without classes."""
    return np.full(count, -1, dtype=np.int64), ()


def natural(names: Collection[str]) -> list[str]:
    """Class names in order: by their numbers where all of them are numbers, else by their bytes."""
    if all(name.isascii() and name.isdecimal() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names, key=lambda name: name.encode("utf-8", "surrogateescape"))


def by_name(texts: Sequence[str]) -> Labelled:
    """Labels (N,) and class names of texts, in the order of `natural`."""
    names = natural(set(texts))
    number = {name: k for k, name in enumerate(names)}
    return np.fromiter((number[text] for text in texts), np.int64, len(texts)), tuple(names)


def labels_of(values: Sequence[object], what: str) -> Labelled:
    """Labels and class names of a column: whole numbers from 0 are classes as they are, anything else goes by name.

    No labels where all are -1, as test sets have them. Raises DataError for missing values, lists, and numbers that
    are negative or not whole, naming `what` holds them.
    """
    if any(value is None or value == "" or value != value for value in values):
        raise DataError(f"{what}: some rows have no label; fill or remove them, or pass --labels none")
    texts = [_text(value, what) for value in values]
    if any(text.startswith("-") for text in texts) and all(re.fullmatch(r"-?\d+", text) for text in texts):
        if set(texts) == {"-1"}:
            return unlabelled(len(texts))
        raise DataError(f"{what} has negative labels; fix or remove these rows")
    plain = all(text.isascii() and text.isdecimal() and len(text) < 10 and str(int(text)) == text for text in texts)
    if plain and texts and max(map(int, texts)) < max(MAX_NUMBER, 2 * len(texts)):
        numbers = np.array([int(text) for text in texts], dtype=np.int64)
        return numbers, tuple(str(k) for k in range(int(numbers.max()) + 1))
    return by_name(texts)


def _text(value: object, what: str) -> str:
    if isinstance(value, (list, tuple)) and len(value) == 1:
        value = value[0]
    if isinstance(value, (bool, np.bool_)):
        return str(int(value))
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        return str(int(value))
    if isinstance(value, (int, np.integer)):
        return str(int(value))
    if isinstance(value, (str, bytes)):
        text = (value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value).strip()
        return str(int(float(text))) if re.fullmatch(r"\d{1,9}\.0", text) else text
    raise DataError(
        f"{what}: {value!r} is no class: one name or whole number for each image is needed (several labels of one "
        "image are not supported); choose another column, or pass --labels none"
    )


def rule_of(labelled: Labelled, what: str) -> str:
    """How labels were found, for people to read."""
    return f"labels: {what}" if labelled[1] else f"no labels: all of {what} are -1"


def is_identity(values: Sequence[object]) -> bool:
    """Whether (nearly) every image has a value of its own: an identity or a caption, and no class."""
    try:
        distinct = len(set(values))
    except TypeError:
        return False
    return len(values) >= FEW and distinct > max(len(values) // 2, FEW - 1)


def find_label_column(
    columns: Sequence[str], read: Callable[[str], Sequence[object]], options: SourceOptions, what: str
) -> tuple[str | None, list[str]]:
    """Which column holds the labels, and notes on others that might.

    The named one; or the likeliest by its name whose values are classes. Raises DataError for a column that is not
    there, and where labels were asked for and none looks like them.
    """
    listed = ", ".join(map(str, columns))
    if options.label_column is not None:
        if options.label_column not in columns:
            raise DataError(f"{options.flag('label-column', options.label_column)}: {what} has only {listed}")
        return options.label_column, []
    if options.labels in ("none", "folder"):
        return None, []
    lower = {str(name).strip().lower().replace("-", "_").replace(" ", "_"): name for name in columns}
    candidates = [lower[word] for word in LABEL_WORDS if word in lower]
    notes, chosen = [], None
    for name in candidates:
        values = read(name)
        if is_identity(values):
            notes.append(
                f"column {name} of {what} is different for nearly every image: an identity, no class. To use it all "
                f"the same: {options.flag('label-column', name)}"
            )
        elif chosen is None:
            chosen = name
        else:
            notes.append(f"column {name} of {what} may hold labels too: {options.flag('label-column', name)}")
    if chosen is None and options.labels == "column":
        raise DataError(
            f"{options.flag('labels column')}: {what} has no label column among {listed}; choose with "
            f"{options.flag('label-column')}"
        )
    return chosen, notes
