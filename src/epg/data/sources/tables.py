"""Parquet and Arrow files: encoded images in one column, labels in another; read group by group."""

import json
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from epg.data.sources.base import Found, Source, SourceOptions, check_size, labels_of
from epg.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

TABLE_SUFFIXES = (".parquet", ".arrow")
Labelled = tuple[NDArray[np.int64], tuple[str, ...]]


class TableSource(Source):
    """Rows of parquet or Arrow files, in order. Columns are found by their type where they are not named.

    Args:
        files: (name, function that opens it) pairs.
    """

    def __init__(self, files: Sequence[tuple[str, Callable[[], BinaryIO]]], name: str, options: SourceOptions) -> None:
        self.files = list(files)
        first = _open(*self.files[0])
        self.image_column = find_image_column(first.schema, options.image_column, name)
        wanted = None if options.labels in ("none", "folder") else options.label_column
        column = None if options.labels in ("none", "folder") else find_label_column(first.schema, wanted, name)
        if options.labels == "column" and column is None:
            raise DataError(f"{name} has no label column among {', '.join(first.schema.names)}; see --label-column")
        names, values, starts, groups = list[bytes](), [], [0], []
        for number, file in enumerate(self.files):
            table = _open(*file)
            if self.image_column not in table.schema.names or (column and column not in table.schema.names):
                raise DataError(f"{file[0]} has other columns than {self.files[0][0]}: {', '.join(table.schema.names)}")
            row = 0
            for group in range(table.groups):
                rows = table.rows(group)
                groups.append((number, group))
                starts.append(starts[-1] + rows)
                names += [f"{file[0]} row {r}".encode("utf-8", "surrogateescape") for r in range(row, row + rows)]
                row += rows
                if column:
                    values += table.read(group, column).to_pylist()
        if starts[-1] == 0:
            raise DataError(f"{name} holds no rows")
        labels = read_labels(first.schema, column, values, name) if column else _unlabelled(starts[-1])
        super().__init__("table", name, Found.rows(names), *labels)
        self.starts = np.array(starts, dtype=np.int64)
        self.groups = np.array(groups, dtype=np.int64)
        self.keep_groups = 1  # how many groups of rows stay in memory
        self.cached: OrderedDict[int, Any] = OrderedDict()
        self.opened: tuple[int, _Table] | None = None

    def read(self, index: int) -> bytes:
        group = int(np.searchsorted(self.starts, index, side="right")) - 1
        if group not in self.cached:
            while len(self.cached) >= self.keep_groups:  # free the old ones first
                self.cached.popitem(last=False)
            self.cached[group] = self._read_group(group)
        self.cached.move_to_end(group)
        value = self.cached[group][index - int(self.starts[group])].as_py()
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            raise DataError(f"column {self.image_column} holds no encoded image in this row")
        check_size(len(data))
        return data

    def _read_group(self, group: int) -> Any:
        number, inner = (int(value) for value in self.groups[group])
        if self.opened is None or self.opened[0] != number:
            self.opened = (number, _open(*self.files[number]))
        return self.opened[1].read(inner, self.image_column)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "cached": OrderedDict(), "opened": None}


class _Table:
    """One file as groups of rows, whichever of the three formats it has."""

    def __init__(self, name: str, stream: BinaryIO) -> None:
        import pyarrow as pa
        import pyarrow.parquet

        self.name = name
        try:
            if name.lower().endswith(".parquet"):
                parquet = pyarrow.parquet.ParquetFile(stream)
                self.schema: pa.Schema = parquet.schema_arrow
                self.groups = parquet.num_row_groups
                self.rows: Callable[[int], int] = lambda group: int(parquet.metadata.row_group(group).num_rows)
                self._read = lambda group, column: parquet.read_row_group(group, [column], use_threads=False).column(0)
                return
            source = pa.memory_map(stream.name) if isinstance(getattr(stream, "name", None), str) else stream
            if stream.read(6) == b"ARROW1":
                file = pa.ipc.open_file(source)
                self.schema, self.groups = file.schema, file.num_record_batches
                batch: Callable[[int], pa.RecordBatch] = file.get_batch
            else:  # what the datasets library saves
                stream.seek(0)
                with pa.ipc.open_stream(source) as reader:
                    batches = list(reader)  # memory-mapped: no data is read
                    self.schema = reader.schema
                self.groups = len(batches)
                batch = batches.__getitem__
            self.rows = lambda group: batch(group).num_rows
            self._read = lambda group, column: pa.chunked_array([batch(group).column(column)])
        except (OSError, ValueError) as error:
            raise DataError(f"{name} is not a readable parquet or Arrow file: {error}") from error

    def read(self, group: int, column: str) -> Any:
        try:
            values = self._read(group, column)
            values.validate(full=True)  # offsets of a damaged Arrow file may point anywhere
            return values
        except (OSError, ValueError) as error:
            raise DataError(f"{self.name}, row group {group}: {error}") from error


def _open(name: str, open_file: Callable[[], BinaryIO]) -> _Table:
    return _Table(name, open_file())


def _unlabelled(rows: int) -> Labelled:
    return np.full(rows, -1, dtype=np.int64), ()


def find_image_column(schema: "pa.Schema", wanted: str | None, where: str) -> str:
    """The column of encoded images: the named one, or the only one of binary type or of structs with `bytes`."""
    import pyarrow as pa

    if wanted is not None:
        if wanted not in schema.names:
            raise DataError(f"--image-column {wanted}: {where} has only {', '.join(schema.names)}")
        return wanted

    def is_encoded(kind: "pa.DataType") -> bool:
        if pa.types.is_struct(kind):
            return kind.get_field_index("bytes") >= 0
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    images = [field.name for field in schema if is_encoded(field.type)]
    if len(images) != 1:
        problem = f"several image columns ({', '.join(images)})" if images else "no image column"
        raise DataError(f"{where} has {problem} among {', '.join(schema.names)}: choose with --image-column")
    return images[0]


def find_label_column(schema: "pa.Schema", wanted: str | None, where: str) -> str | None:
    """The named column, the only one with Hugging Face class labels, `label`, or none."""
    if wanted is not None:
        if wanted not in schema.names:
            raise DataError(f"--label-column {wanted}: {where} has only {', '.join(schema.names)}")
        return wanted
    classes = [name for name in schema.names if class_names(schema, name) is not None]
    if len(classes) > 1 and "label" not in classes:
        raise DataError(f"{where} has several label columns ({', '.join(classes)}): choose with --label-column")
    if len(classes) == 1:
        return classes[0]
    return "label" if "label" in schema.names else None


def class_names(schema: "pa.Schema", column: str) -> tuple[str, ...] | None:
    """The names that Hugging Face's metadata gives the classes of a column, None where it gives none."""
    try:
        feature = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][column]
        names = feature["names"] if feature.get("_type") == "ClassLabel" else None
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    return tuple(str(name) for name in names) if isinstance(names, list) and names else None


def read_labels(schema: "pa.Schema", column: str, values: list[Any], where: str) -> Labelled:
    """Labels (N,) and class names of a column's values. Raises DataError for labels outside of the named classes."""
    names = class_names(schema, column)
    if values and all(value == -1 for value in values):  # the Hub's convention for test sets without labels
        return _unlabelled(len(values))
    if not all(isinstance(value, (int, str, type(None))) for value in values):
        raise DataError(f"{where}: column {column} holds no class labels; choose another with --label-column")
    if names is None:
        return labels_of(values)
    if not all(isinstance(value, int) and 0 <= value < len(names) for value in values):
        raise DataError(f"{where}: column {column} has labels outside 0..{len(names) - 1}; fix or remove these rows")
    return np.array(values, dtype=np.int64), names
