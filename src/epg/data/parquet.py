"""Parquet files with Hugging Face features, memory-mapped through the `datasets` library, decoded by our own code."""

import glob
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from epg.data.base import ImageDataset, NoSplitError
from epg.data.decode import decode_image
from epg.data.splits import SPLIT_NAMES
from epg.errors import DataError

if TYPE_CHECKING:
    import datasets


class ParquetDataset(ImageDataset):
    """Rows of parquet files: encoded images in one column, optional class labels in another.

    Columns are found by their type where they are not named. Raises DataError for unreadable files, and for columns
    that are missing or ambiguous.
    """

    def __init__(
        self,
        files: Sequence[Path],
        *,
        image_size: int,
        channels: int,
        image_column: str | None = None,
        label_column: str | None = None,
    ) -> None:
        import datasets

        self.row_starts = np.cumsum([0, *(_count_rows(file) for file in files)])
        if self.row_starts[-1] == 0:
            raise DataError(f"{files[0]} holds no rows")
        # `datasets` takes paths as glob patterns.
        table = datasets.Dataset.from_parquet([glob.escape(str(file.resolve())) for file in files])
        assert isinstance(table, datasets.Dataset)
        assert len(table) == self.row_starts[-1]
        self.image_column = _find_image_column(table.features, image_column, files[0])
        self.label_column = _find_label_column(table.features, label_column, files[0])
        labels, names = _read_labels(table, self.label_column, files[0])
        super().__init__(labels, names, image_size, channels)
        self.files = tuple(files)
        table = table.select_columns([self.image_column])
        if isinstance(table.features[self.image_column], datasets.Image):
            table = table.cast_column(self.image_column, datasets.Image(decode=False))
        self.table = table

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], int]:
        value = self.table[int(index)][self.image_column]
        data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
        source = data if data is not None else path and self.files[0].parent / path
        if not source:
            raise DataError(f"{self.describe(index)}: column {self.image_column!r} is empty; remove this row")
        image = decode_image(source, self.image_size, self.channels, name=self.describe(index))
        return image, int(self.labels[index])

    def describe(self, index: int) -> str:
        file = int(np.searchsorted(self.row_starts, index, side="right")) - 1
        return f"{self.files[file]} row {index - self.row_starts[file]}"

    def fingerprint(self) -> str:
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        files = (f"{file.name} {file.stat().st_size}" for file in self.files)
        columns = f"{self.image_column} {self.label_column}"
        return self._digest("parquet", [columns, *files, self.labels.tobytes()])


def find_parquet(root: Path, split: str) -> list[Path]:
    """The parquet files of `split` in the folder `root` (or in `root/data`, the Hub's layout), sorted; [] if none.

    Files called train*, test*, validation* or val* are those splits; without any such name all files are "train".
    Raises NoSplitError when there are parquet files, but none of this split.
    """
    files = list_parquet(root) or list_parquet(root / "data")
    if not files:
        return []
    named = [match[1].lower() if (match := _SPLIT_NAME.match(file.name)) else None for file in files]
    if not any(named):
        return check_unsplit(root, split, files)
    if None in named:
        raise DataError(
            f"{root}: {files[named.index(None)].name} does not name its split, but other files do: "
            "call it train-... or move it away"
        )
    for name in SPLIT_NAMES.get(split, ()):
        if name in named:
            return [file for file, other in zip(files, named, strict=True) if other == name]
    raise NoSplitError(f"{root} has no {split!r} split: its parquet files are {', '.join(f.name for f in files[:8])}")


def list_parquet(folder: Path) -> list[Path]:
    """All parquet files directly in a folder, sorted by name; [] if there is no such folder."""
    return sorted(file for file in folder.glob("*.parquet") if not file.name.startswith("."))


def check_unsplit(source: Path, split: str, files: list[Path]) -> list[Path]:
    """`files` for the split "train"; raises NoSplitError for any other."""
    if split != "train":
        raise NoSplitError(f"{source} has no {split!r} split: give a folder with train*.parquet and {split}*.parquet")
    return files


_SPLIT_NAME = re.compile(r"(train|test|validation|val)(?![a-z])", re.IGNORECASE)


def _count_rows(file: Path) -> int:
    import pyarrow.parquet

    try:
        return int(pyarrow.parquet.read_metadata(file).num_rows)
    except (OSError, ValueError) as error:
        raise DataError(f"{file} is not a readable parquet file: {error}") from error


def _find_image_column(features: "datasets.Features", wanted: str | None, file: Path) -> str:
    import datasets

    def is_encoded(feature: Any) -> bool:
        is_bytes = isinstance(feature, datasets.Value) and feature.dtype in ("binary", "large_binary")
        return is_bytes or (isinstance(feature, dict) and "bytes" in feature)

    if wanted is not None:
        return _check_column(features, wanted, file, "--data.image-column")
    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    images = images or [name for name, feature in features.items() if is_encoded(feature)]
    if len(images) != 1:
        problem = f"several image columns ({', '.join(images)})" if images else "no image column"
        raise DataError(f"{file} has {problem} among its columns {_list(features)}: choose with --data.image-column")
    return images[0]


def _find_label_column(features: "datasets.Features", wanted: str | None, file: Path) -> str | None:
    import datasets

    if wanted is not None:
        return _check_column(features, wanted, file, "--data.label-column")
    classes = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    if len(classes) > 1 and "label" not in classes:
        raise DataError(f"{file} has several label columns ({', '.join(classes)}): choose with --data.label-column")
    if len(classes) == 1:
        return classes[0]
    return "label" if "label" in features else None


def _check_column(features: "datasets.Features", wanted: str, file: Path, flag: str) -> str:
    if wanted not in features:
        raise DataError(f"{flag} {wanted}: {file} has no such column, only {_list(features)}")
    return wanted


def _list(features: "datasets.Features") -> str:
    return ", ".join(features)


def _read_labels(
    table: "datasets.Dataset", column: str | None, file: Path
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Labels (N,) and class names; names are the numbers themselves where the file has none."""
    import datasets

    unlabelled = np.full(len(table), -1, dtype=np.int64)
    if column is None:
        return unlabelled, ()
    values = table.data.column(column)
    if values.null_count:
        raise DataError(f"{file}: label column {column!r} has {values.null_count} empty rows; fill or remove them")
    raw = np.asarray(values.to_pylist())
    feature = table.features[column]
    if raw.dtype.kind == "U":
        names, labels = np.unique(raw, return_inverse=True)
        return labels.astype(np.int64), tuple(str(name) for name in names)
    if raw.dtype.kind not in "iub" or raw.ndim != 1:
        raise DataError(f"{file}: column {column!r} holds no class labels; choose another with --data.label-column")
    labels = raw.astype(np.int64)
    if (labels == -1).all():  # the Hub's convention for test sets whose labels are withheld
        return unlabelled, ()
    named = isinstance(feature, datasets.ClassLabel)
    classes = tuple(feature.names) if named else tuple(str(value) for value in range(labels.max() + 1))
    if labels.min() < 0 or labels.max() >= len(classes):
        wrong = labels.min() if labels.min() < 0 else labels.max()
        raise DataError(f"{file}: label {wrong} in column {column!r} is outside 0..{len(classes) - 1}")
    return labels, classes
