"""The rows of a label file (CSV of any dialect, JSON, JSON lines, parquet, with a header or not) and their images."""

import csv
import io
import json
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from epg.data.sources.kinds import is_image
from epg.data.sources.labels import LABEL_WORDS
from epg.data.sources.names import Names
from epg.data.sources.splits import split_names
from epg.errors import DataError

MAX_LISTED = 2**28  # bytes of a label file
BOXES = "PredictionString"  # of Kaggle's ImageNet: a class and its boxes, "n01440764 10 20 90 95"
Row = dict[str, Any]


def rows_of(content: bytes, file: str) -> tuple[list[Row], list[str]]:
    """The rows of a label file and its columns. Raises DataError saying what is wrong with it."""
    if len(content) > MAX_LISTED:
        raise DataError(f"{file}: {len(content)} bytes are more than the limit of {MAX_LISTED} for a label file")
    try:
        rows = _parsed(content, file.lower().rpartition(".")[2])
    except (OSError, csv.Error, ValueError, RecursionError) as error:
        raise DataError(f"{file} cannot be read: {error}. It must be UTF-8 text with a column file_name") from error
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{file}: every row needs a file_name, the path of an image relative to this file; none found")
    return rows, list(dict.fromkeys(str(key) for row in rows for key in row))


def _parsed(content: bytes, kind: str) -> Any:
    if kind == "parquet":
        import pyarrow.parquet

        return pyarrow.parquet.read_table(io.BytesIO(content)).to_pylist()
    text = content.decode("utf-8-sig")
    if kind == "json":
        rows = json.loads(text)
        if isinstance(rows, dict) and not any(isinstance(value, (dict, list)) for value in rows.values()):
            return [{"file_name": name, "label": value} for name, value in rows.items()]
        return rows
    if kind == "jsonl":
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    return _table(text)


def _table(text: str) -> list[Row]:
    rows = _cells(text)
    names = rows[0] if rows else []
    if twice := next((name for k, name in enumerate(names) if name.lower() in LABEL_WORDS and name in names[:k]), None):
        raise ValueError(f"it has two columns {twice}")
    for row in rows[1:]:
        if any(row[len(names) :]):
            raise ValueError(f"the row {row} has more cells than the first ({len(names)}); quote cells with the sign")
    listed = [dict(zip(names, row, strict=False)) for row in rows[1:]]
    for entry in listed:
        if BOXES in entry:
            entry[BOXES] = entry[BOXES].partition(" ")[0]
    return listed


def _cells(text: str) -> list[list[str]]:
    """The cells of every row, divided by the sign that the first row has most of."""
    head = text.split("\n", 1)[0]
    delimiter = max(",;\t| ", key=lambda sign: (head.count(sign) if sign != " " else 0.5, -ord(sign)))
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    return [[cell.strip() for cell in row] for row in rows if any(row)]


def headless(content: bytes) -> tuple[list[Row], list[str]]:
    """A list without names of columns, of a file and its label in each row: "0001.jpg 65"."""
    rows = _cells(content.decode("utf-8-sig"))
    columns = ["file_name", "label", *(f"column {k + 1}" for k in range(2, max(map(len, rows))))]
    return [dict(zip(columns, row, strict=False)) for row in rows], columns


def split_column(rows: list[Row], columns: list[str]) -> tuple[str, dict[str, str]] | None:
    """The column that divides rows into splits, and which split each of its values is; None where there is none."""
    for column in columns:
        if not split_names([str(rows[0].get(column))]):
            continue
        values = {str(row.get(column)) for row in rows}
        splits = split_names(values)
        if len(set(splits.values())) > 1 and values == splits.keys():
            return column, splits
    return None


class Index:
    """Finds images by what label files call them: path, file name or stem, in either Unicode form."""

    def __init__(self, names: Names) -> None:
        self.paths: dict[str, int] = {}
        self.short: dict[str, int | None] = {}  # file names and stems; None: several are called so
        self.foreign = ""
        """What all paths of a list begin with that is of another place: /kaggle/input/."""
        for i, name in enumerate(names):
            path = plain(name.decode("utf-8", "surrogateescape"))
            base = path.rpartition("/")[2]
            for key in {base, base.rpartition(".")[0], path.rpartition(".")[0]} - {path}:
                self.short[key] = None if key in self.short else i
            self.paths[path] = i

    def settle(self, values: Sequence[object], folder: str) -> None:
        """Find out what comes before the paths in a list whose file lies in `folder`."""
        wanted = [plain(str(value)) for value in values]
        if all(self.find(path, folder) is None for path in wanted):
            starts = (wanted[0][: match.end()] for match in re.finditer("/", wanted[0]))
            common = (start for start in starts if all(path.startswith(start) for path in wanted))
            self.foreign = next((s for s in common if self.find(wanted[0].removeprefix(s), folder) is not None), "")

    def find(self, value: object, folder: str = "") -> int | None:
        wanted = plain(str(value)).removeprefix(self.foreign)
        stem, _, ending = wanted.rpartition(".")
        other = stem if is_image(f".{ending}".encode()) else wanted  # whatever the ending
        for path in (folder + wanted, wanted):
            if path in self.paths:
                return self.paths[path]
        return self.short.get(wanted, self.short.get(folder + other, self.short.get(other)))


def plain(path: str) -> str:
    return unicodedata.normalize("NFC", path.strip().replace("\\", "/").removeprefix("./"))
