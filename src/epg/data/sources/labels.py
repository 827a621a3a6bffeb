"""From the values of a column to labels and class names, and which column of a list or table holds them."""

import json
import re
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from epg.data.sources.base import Labelled, Overview, SourceOptions
from epg.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

_label_words = (
    "label labels class classes class_name class_label classname label_name category categories category_name target "
    "targets y cls label_id class_id category_id fine_label class_index class_idx label_index label_idx synset wnid "
    "species breed identity predictionstring"
)
LABEL_WORDS = _label_words.split()  # columns that hold labels by their name, the likeliest first
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
    if not options.by_column:
        return None, []
    plain = {re.sub("[- ]", "_", str(name).strip().lower()): name for name in columns}
    lower = {name.rpartition(".")[2]: column for name, column in plain.items()} | plain
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


def find_image_column(schema: "pa.Schema", options: SourceOptions, where: str) -> str:
    """The column of encoded images: the named one, the only Hugging Face image, or the only one of encoded bytes."""
    import pyarrow as pa

    listed = ", ".join(schema.names)
    if (wanted := options.image_column) is not None:
        if wanted not in schema.names:
            raise DataError(f"{options.flag('image-column', wanted)}: {where} has only {listed}")
        return wanted

    def is_encoded(kind: "pa.DataType") -> bool:
        if pa.types.is_dictionary(kind):
            return is_encoded(kind.value_type)
        if pa.types.is_struct(kind):
            return kind.get_field_index("bytes") >= 0
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))

    features = _features(schema)
    images = [name for name in schema.names if features.get(name, {}).get("_type") == "Image"]
    images = images or [field.name for field in schema if is_encoded(field.type)]
    if len(images) != 1:
        problem = f"several image columns ({', '.join(images)})" if images else "no image column"
        raise DataError(f"{where} has {problem} among its columns {listed}: choose with {options.flag('image-column')}")
    return images[0]


def flat_names(schema: "pa.Schema") -> list[str]:
    """The columns that may hold labels; of a struct its single values as "column.field"."""
    import pyarrow as pa

    names = []
    for column in schema:
        fields = list(column.type) if pa.types.is_struct(column.type) else []
        if not fields or column.type.get_field_index("bytes") >= 0:  # of an image
            names.append(column.name)
        names += [f"{column.name}.{field.name}" for field in fields if not pa.types.is_nested(field.type)]
    return [name for name in names if not name.endswith((".bytes", ".path"))]


def _features(schema: "pa.Schema") -> dict[str, dict[str, Any]]:
    """What Hugging Face's metadata says of the columns."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return {name: value for name, value in features.items() if isinstance(value, dict)}


def _class_names(schema: "pa.Schema", column: str) -> tuple[str, ...] | None:
    """The names that Hugging Face's metadata gives the classes of a column, None where it gives none."""
    feature = _features(schema).get(column, {})
    names = feature.get("names") if feature.get("_type") == "ClassLabel" else None
    return tuple(str(name) for name in names) if isinstance(names, list) and names else None


def read_labels(
    schema: "pa.Schema", read: Callable[[str], list[Any]], count: int, options: SourceOptions, where: str
) -> tuple[Labelled, Overview]:
    """Labels and class names of a table: by its only column of class labels, or the likeliest by its name."""
    if not options.by_column:
        return unlabelled(count), Overview("no labels: asked for")
    named = [name for name in schema.names if _class_names(schema, name) is not None]
    notes: list[str] = []
    if options.label_column is not None or not named:
        column, notes = find_label_column(flat_names(schema), read, options, where)
    elif len(named) > 1 and "label" not in named:
        listed = ", ".join(named)
        raise DataError(f"{where} has several label columns ({listed}): choose with {options.flag('label-column')}")
    else:
        column = "label" if "label" in named else named[0]
    if "split" in schema.names and column != "split":
        notes.append(f"column split of {where} is not followed: all rows are read")
    if column is None:
        listed = f"{', '.join(schema.names)} looks like them ({options.flag('label-column')} names one)"
        return unlabelled(count), Overview(f"no labels: no column of {listed}", (), notes)
    values, names, what = read(column), _class_names(schema, column), f"column {column}"
    if (empty := sum(value is None for value in values)) > 0:
        raise DataError(f"{where}: label column {column!r} has {empty} empty rows; fill or remove them")
    if names is None or all(value == -1 for value in values):  # the Hub's convention for test sets without labels
        labelled = labels_of(values, f"{where}: {what}")
        return labelled, Overview(rule_of(labelled, what), (), notes)
    if not all(isinstance(value, int) and 0 <= value < len(names) for value in values):
        raise DataError(f"{where}: column {column} has labels outside 0..{len(names) - 1}; fix or remove these rows")
    return (np.array(values, dtype=np.int64), names), Overview(f"labels: {what}", (), notes)
