"""Parquet and Arrow files: encoded images in one column, labels in another; read group by group."""

import json
import os
import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from epg.data.sources.archives import open_binary
from epg.data.sources.base import Images, Labelled, Overview, Source, SourceOptions, checked
from epg.data.sources.kinds import is_image_suffix, list_folder
from epg.data.sources.labels import find_label_column, labels_of, unlabelled
from epg.data.splits import pick, refuse_split, split_names
from epg.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

TABLE_SUFFIXES = (".parquet", ".arrow")
Opener = Callable[[], BinaryIO]
RUN_GROUPS = 32  # groups of rows that a streamed table keeps


class TableSource(Source):
    """Rows of parquet or Arrow files, in order. Columns are found by their type and name where they are not named.

    Args:
        files: (name, function that opens it) pairs.
        rule: how these files were chosen, for people to read.
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
        streamed: bool = False,
        metadata: dict[bytes, bytes] | None = None,
    ) -> None:
        self.files = list(files)
        self.streamed = streamed
        tables = [_open(*file) for file in self.files]
        schema = tables[0].schema if metadata is None else tables[0].schema.with_metadata(metadata)
        self.image_column = find_image_column(schema, options, name)
        for file, table in zip(self.files, tables, strict=True):
            if set(table.schema.names) != set(schema.names):
                raise DataError(f"{file[0]} has other columns than {self.files[0][0]}: {', '.join(table.schema.names)}")
        rows = [table.rows(group) for table in tables for group in range(table.groups)]
        self.starts = np.cumsum([0, *rows], dtype=np.int64)
        self.groups = np.array([(n, g) for n, table in enumerate(tables) for g in range(table.groups)], dtype=np.int64)
        if not rows or self.starts[-1] == 0:
            raise DataError(f"{name} holds no rows")
        names = [
            f"{file[0]} row {row}".encode("utf-8", "surrogateescape")
            for file, table in zip(self.files, tables, strict=True)
            for row in range(sum(table.rows(group) for group in range(table.groups)))
        ]
        labelled, said = _labels(schema, partial(_values, tables), len(names), options, name)
        super().__init__(kind, name, Images.rows(names, labelled, Overview(rule + said.rule, said.unread, said.notes)))
        self.where = "" if streamed else f"{Path(getattr(tables[0].stream, 'name', name)).parent}/"
        self.keep_groups = RUN_GROUPS if streamed else 1
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
        return checked(data, self.image_column)

    def _read_group(self, group: int) -> Any:
        number, inner = (int(value) for value in self.groups[group])
        if self.opened is None or self.opened[0] != number:
            self.opened = (number, _open(*self.files[number]))
        return self.opened[1].read(inner, self.image_column)

    def at_random(self) -> Source:
        """The rows of parquet files as memory-mapped Arrow files, which the `datasets` library keeps in its cache."""
        if self.streamed or not any(file.lower().endswith(".parquet") for file, _ in self.files):
            self.keep_groups = 2**20  # memory-mapped: they cost nothing
            return self
        import glob

        import datasets

        paths = [glob.escape(opener().name) for _, opener in self.files]  # `datasets` takes paths as glob patterns
        table = datasets.Dataset.from_parquet(paths, columns=[self.image_column])
        return ArrowCopy(self, [str(file["filename"]) for file in table.cache_files])

    def total_bytes(self) -> int:
        return sum(_size(opener) for _, opener in self.files)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "cached": OrderedDict(), "opened": None}


class ArrowCopy(TableSource):
    """The images of a table from Arrow files that hold them again; names and labels as in the original."""

    def __init__(self, original: TableSource, files: list[str]) -> None:
        self.__dict__.update(original.__dict__)
        self.files = [(Path(file).name, partial(open_binary, Path(file))) for file in files]
        tables = [_open(*file) for file in self.files]
        rows = [table.rows(group) for table in tables for group in range(table.groups)]
        self.starts = np.cumsum([0, *rows], dtype=np.int64)
        self.groups = np.array([(n, g) for n, table in enumerate(tables) for g in range(table.groups)], dtype=np.int64)
        assert self.starts[-1] == len(original), "the copy has other rows"
        self.cached, self.opened, self.keep_groups = OrderedDict(), None, 2**20


def _size(opener: Opener) -> int:
    with opener() as stream:
        return stream.seek(0, os.SEEK_END)


class _Table:
    """One file as groups of rows, whichever of the three formats it has."""

    def __init__(self, name: str, stream: BinaryIO) -> None:
        import pyarrow as pa
        import pyarrow.parquet

        self.name, self.stream = name, stream
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


def _open(name: str, open_file: Opener) -> _Table:
    stream = open_file()
    return _Table(name, stream)


def _values(tables: list[_Table], column: str) -> list[Any]:
    """A whole column of all files."""
    return [v for table in tables for group in range(table.groups) for v in table.read(group, column).to_pylist()]


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


def _labels(
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
    values, names, rule = read(column), _class_names(schema, column), f"labels: column {column}"
    if values and all(value == -1 for value in values):  # the Hub's convention for test sets without labels
        return unlabelled(count), Overview(f"no labels: all of column {column} are -1", (), notes)
    if (empty := sum(value is None for value in values)) > 0:
        raise DataError(f"{where}: label column {column!r} has {empty} empty rows; fill or remove them")
    if names is None:
        what = f"{where}: column {column}"
        if any(isinstance(value, int) and value < 0 for value in values):
            raise DataError(f"{what} has negative labels; fix or remove these rows")
        return labels_of(values, what), Overview(rule, (), notes)
    if not all(isinstance(value, int) and 0 <= value < len(names) for value in values):
        raise DataError(f"{where}: column {column} has labels outside 0..{len(names) - 1}; fix or remove these rows")
    return (np.array(values, dtype=np.int64), names), Overview(rule, (), notes)


def open_tables(address: str, options: SourceOptions) -> Source | None:
    """A parquet or Arrow file, a folder of them (or its `data` folder), or what `save_to_disk` left."""
    path = Path(address).expanduser()
    if path.is_file() and path.name.lower().endswith(TABLE_SUFFIXES):
        refuse_split(options.split, address)
        return TableSource([(path.name, partial(open_binary, path.resolve()))], path.name, options)
    if not path.is_dir():
        return None
    name = path.resolve().name
    if (saved := _saved(path, options.split)) is not None:
        return TableSource(*saved, options, kind="saved data set")
    for place in (path, path / "data"):
        if place.is_dir() and (files := _tables_in(place)):
            chosen, rule = of_split(files, options.split, str(path))
            openers = [(file, partial(open_binary, (place / file).resolve())) for file in chosen]
            return TableSource(openers, name, options, rule=rule)
    folders = split_names(list_folder(path)[1])
    splits = {folder: split for folder, split in folders.items() if _tables_in(path / folder)}
    if not splits:
        return None
    folder = pick(splits, options.split, str(path))[0]
    openers = [(file, partial(open_binary, (path / folder / file).resolve())) for file in _tables_in(path / folder)]
    return TableSource(openers, name, options, rule=f"split {options.split}: folder {folder}/; ")


def _tables_in(folder: Path) -> list[str]:
    """Tables of a folder without images; results that `datasets` keeps of its own computations are none."""
    names, _ = list_folder(folder)
    tables = [name for name in names if name.lower().endswith(TABLE_SUFFIXES)]
    has_images = any(is_image_suffix(os.fsencode(name)[-12:]) for name in names)
    return [] if has_images else [name for name in tables if not re.fullmatch(r"cache-.*\.arrow", name)]


def of_split(files: Sequence[str], split: str, where: str) -> tuple[list[str], str]:
    """The files of a split by their names, and how they were chosen; all where no name has one and train is wanted."""
    stems = {file: file.rpartition("/")[2].rpartition(".")[0] for file in files}
    splits = split_names(set(stems.values()))
    if not splits:
        refuse_split(split, where)
        return sorted(files), ""
    if other := next((file for file in files if stems[file] not in splits), None):
        raise DataError(
            f"{where}: {other} does not name its split, but other files do: call it train-... or move it away"
        )
    wanted = {splits[stem] for stem in pick(splits, split, where)}
    chosen = sorted(file for file in files if splits[stems[file]] in wanted)
    return chosen, f"split {split}: {len(chosen)} of {len(files)} files; "


def _saved(path: Path, split: str) -> tuple[list[tuple[str, Opener]], str] | None:
    """The files of a data set, or a split of one, that `datasets` saved: those that its state.json lists."""
    name = path.resolve().name
    if (path / "dataset_dict.json").is_file():
        known = _json(path / "dataset_dict.json", "splits")
        splits = split_names(set(map(str, known)))
        path = path / pick(splits or {str(k): str(k) for k in known}, split, str(path))[0]
    elif (path / "state.json").is_file():
        refuse_split(split, str(path))
    if not (path / "state.json").is_file():
        return None
    listed = [str(entry.get("filename", "")) for entry in _json(path / "state.json", "_data_files")]
    if not listed or any("/" in file or "\\" in file or not (path / file).is_file() for file in listed):
        raise DataError(f"{path}/state.json lists files that are not there ({', '.join(listed[:3])}); copy them, too")
    return [(file, partial(open_binary, (path / file).resolve())) for file in listed], name


def _json(file: Path, key: str) -> list[Any]:
    try:
        return list(json.loads(file.read_bytes())[key])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} cannot be read: {error!r}; save the data set again with save_to_disk") from error
