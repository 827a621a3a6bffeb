"""Which columns of a table hold images and labels."""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from epg.data.sources.base import Labelled, Overview, SourceOptions
from epg.data.sources.labels import find_label_column, labels_of, rule_of, unlabelled
from epg.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa


def find_image_column(schema: "pa.Schema", options: SourceOptions, where: str) -> str:
    """The column of encoded images: the named one, the only Hugging Face image, or the only one of encoded bytes."""
    import pyarrow as pa

    wanted, listed = options.image_column, ", ".join(schema.names)
    if wanted is not None:
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
    """Labels and class names by the only column of class labels, or the likeliest by its name."""
    classes = [name for name in schema.names if _class_names(schema, name) is not None]
    if options.labels in ("none", "folder"):
        return unlabelled(count), Overview("no labels: asked for")
    if options.label_column is None and len(classes) > 1 and "label" not in classes:
        listed = ", ".join(classes)
        raise DataError(f"{where} has several label columns ({listed}): choose with {options.flag('label-column')}")
    notes: list[str] = []
    if options.label_column is None and classes:
        column: str | None = "label" if "label" in classes else classes[0]
    else:
        column, notes = find_label_column(schema.names, read, options, where)
    if column is None:
        return unlabelled(count), Overview(
            f"no labels: no column of {', '.join(schema.names)} looks like them", (), notes
        )
    values, names, what = read(column), _class_names(schema, column), f"column {column}"
    if (empty := sum(value is None for value in values)) > 0:
        raise DataError(f"{where}: label column {column!r} has {empty} empty rows; fill or remove them")
    if names is None or all(value == -1 for value in values):  # the Hub's convention for test sets without labels
        labelled = labels_of(values, f"{where}: {what}")
        return labelled, Overview(rule_of(labelled, what), (), notes)
    if not all(isinstance(value, int) and 0 <= value < len(names) for value in values):
        raise DataError(f"{where}: column {column} has labels outside 0..{len(names) - 1}; fix or remove these rows")
    return (np.array(values, dtype=np.int64), names), Overview(f"labels: {what}", (), notes)
