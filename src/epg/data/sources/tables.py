"""Rows of parquet and Arrow files: encoded images in one column, labels in another; read group by group."""

import os
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from epg.data.sources.archives import LocalFile
from epg.data.sources.base import Images, Overview, Source, SourceOptions, checked
from epg.data.sources.files import read_file
from epg.data.sources.kinds import kind_of
from epg.data.sources.labels import find_image_column, read_labels
from epg.data.sources.names import Names
from epg.errors import DataError

TABLE_SUFFIXES = (".parquet", ".arrow")
Opener = Callable[[], BinaryIO]
RUN_GROUPS = 32  # groups of rows that a streamed table keeps


class TableSource(Source):
    """Rows of parquet or Arrow files, in order. Columns are found by their type and name where they are not named.

    Args:
        files: (name, function that opens it) pairs.
        rule: how these files were chosen, for people to read.
        unread: other files beside them.
        metadata: of the schema, where the files lack it.
    """

    def __init__(
        self,
        files: Sequence[tuple[str, Opener]],
        name: str,
        options: SourceOptions,
        *,
        kind: str = "table",
        rule: str = "",
        unread: Sequence[str] = (),
        streamed: bool = False,
        metadata: dict[bytes, bytes] | None = None,
    ) -> None:
        self.streamed = streamed
        tables = self._lie_in(files)
        schema = tables[0].schema if metadata is None else tables[0].schema.with_metadata(metadata)
        self.image_column = find_image_column(schema, options, name)
        for table in tables:
            if set(table.schema.names) != set(schema.names):
                listed = ", ".join(table.schema.names)
                raise DataError(f"{table.name} has other columns than {tables[0].name}: {listed}")
        if self.starts[-1] == 0:
            raise DataError(f"{name} holds no rows")
        rows = (f"{table.name} row {row}" for table in tables for row in range(sum(table.group_rows)))
        names = Names.of([row.encode("utf-8", "surrogateescape") for row in rows])
        labelled, said = read_labels(schema, partial(_values, tables), len(names), options, name)
        kinds = Counter(kind_of(os.fsencode(file)) for file in unread)
        overview = Overview(rule + said.rule, kinds.most_common(), said.notes)
        sizes = np.full(len(names), -1, dtype=np.int64)  # not known before they are read
        super().__init__(kind, name, Images(names, sizes, *labelled, overview))
        first = self.files[0][1]
        self.where = f"{first.path.parent}/" if isinstance(first, LocalFile) and not streamed else ""
        self.keep_groups = RUN_GROUPS if streamed else 1

    def _lie_in(self, files: Sequence[tuple[str, Opener]]) -> "list[_Table]":
        """Read the rows from these files from now on."""
        self.files = list(files)
        tables = [_Table(*file) for file in self.files]
        self.starts = np.cumsum([0, *(rows for table in tables for rows in table.group_rows)], dtype=np.int64)
        self.groups = [(number, group) for number, table in enumerate(tables) for group in range(len(table.group_rows))]
        self.cached: OrderedDict[int, Any] = OrderedDict()
        self.opened: tuple[int, _Table] | None = None
        return tables

    def read(self, index: int) -> bytes:
        group = int(np.searchsorted(self.starts, index, side="right")) - 1
        if group not in self.cached:
            while len(self.cached) >= self.keep_groups:  # free the old ones first
                self.cached.popitem(last=False)
            self.cached[group] = self._read_group(group)
        self.cached.move_to_end(group)
        value = self.cached[group][index - int(self.starts[group])].as_py()
        data = value.get("bytes") if isinstance(value, dict) else value
        if data is None and isinstance(value, dict) and value.get("path"):
            return self._beside(str(value["path"]))
        if not isinstance(data, bytes):
            column = self.image_column
            raise DataError(f"column {column!r} is empty or holds no encoded image in this row; remove this row")
        return checked(data)

    def _beside(self, path: str) -> bytes:
        """An image that the table names instead of holding it: a file in the folder of the table or below."""
        cure = "; store the images in the table (datasets: embed_table_storage, or push_to_hub)"
        if not self.where:
            raise DataError(f"its image is another file, {path}, which is not fetched{cure}")
        folder = Path(self.where).resolve()
        file = (folder / path).resolve()
        if not file.is_relative_to(folder):
            raise DataError(f"its image is {path}, outside of the folder of the table{cure}")
        try:
            return read_file(file)
        except FileNotFoundError:
            raise DataError(f"its image {path} is not there{cure}") from None

    def _read_group(self, group: int) -> Any:
        number, inner = self.groups[group]
        if self.opened is None or self.opened[0] != number:
            self.opened = (number, _Table(*self.files[number]))
        return self.opened[1].read(inner, self.image_column)

    def at_random(self) -> Source:
        """The rows of parquet files as memory-mapped Arrow files, which the `datasets` library keeps in its cache."""
        if self.streamed or not any(file.lower().endswith(".parquet") for file, _ in self.files):
            self.keep_groups = 2**20  # memory-mapped: they cost nothing
            return self
        import glob

        import datasets

        # `datasets` takes paths as glob patterns
        paths = [glob.escape(str(getattr(opener, "path", file))) for file, opener in self.files]
        table = datasets.Dataset.from_parquet(paths, columns=[self.image_column])
        other = copy(self)
        other._lie_in([(Path(file["filename"]).name, LocalFile(Path(file["filename"]))) for file in table.cache_files])
        assert other.starts[-1] == len(self), "the copy has other rows"
        return other.at_random()

    def total_bytes(self) -> int:
        return sum(_size(opener) for _, opener in self.files)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "cached": OrderedDict(), "opened": None}


def _size(opener: Opener) -> int:
    with opener() as stream:
        return stream.seek(0, os.SEEK_END)


class _Table:
    """One file as groups of rows, whichever of the three formats it has."""

    def __init__(self, name: str, open_file: Opener) -> None:
        import pyarrow as pa
        import pyarrow.parquet

        self.name, stream = name, open_file()
        try:
            if name.lower().endswith(".parquet"):
                parquet = pyarrow.parquet.ParquetFile(stream)
                self.schema: pa.Schema = parquet.schema_arrow
                self.group_rows = [parquet.metadata.row_group(k).num_rows for k in range(parquet.num_row_groups)]
                self._read = lambda group, column: parquet.read_row_group(group, [column], use_threads=False).column(0)
                return
            source = pa.memory_map(str(open_file.path)) if isinstance(open_file, LocalFile) else stream
            if stream.read(6) == b"ARROW1":
                file = pa.ipc.open_file(source)
                self.schema, count = file.schema, file.num_record_batches
                batch: Callable[[int], pa.RecordBatch] = file.get_batch  # far away it is read only when asked for
            else:  # what the datasets library saves
                stream.seek(0)
                with pa.ipc.open_stream(source) as reader:
                    batches, self.schema = list(reader), reader.schema  # memory-mapped: no data is read
                batch, count = batches.__getitem__, len(batches)
            self.group_rows = [batch(group).num_rows for group in range(count)]
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


def _values(tables: list[_Table], column: str) -> list[Any]:
    """A whole column of all files, or ("column.field") of a field in it."""
    name, inner = (column, "") if column in tables[0].schema.names else column.split(".", 1)
    groups = ((table, group) for table in tables for group in range(len(table.group_rows)))
    values = [value for table, group in groups for value in table.read(group, name).to_pylist()]
    return [value and value.get(inner) for value in values] if inner else values
