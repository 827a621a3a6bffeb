"""Data sets of the Hugging Face Hub by name, through the `datasets` library and its local cache."""

import re
from typing import TYPE_CHECKING

from epg.data.sources.base import Found, Source, SourceOptions, check_size
from epg.data.sources.tables import find_image_column, find_label_column, read_labels
from epg.errors import DataError

if TYPE_CHECKING:
    import datasets

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


class HubSource(Source):
    """A split of a Hub data set: downloaded once into the cache of `datasets`, memory-mapped from there.

    Raises DataError with the cure where the Hub cannot be reached, access is missing or the split has another name.
    """

    def __init__(self, name: str, options: SourceOptions) -> None:
        import datasets

        table = _load(name, options.split)
        schema = table.data.schema
        self.image_column = find_image_column(schema, options.image_column, name)
        unlabelled = options.labels in ("none", "folder")
        column = None if unlabelled else find_label_column(schema, options.label_column, name)
        if options.labels == "column" and column is None:
            raise DataError(f"{name} has no label column among {', '.join(schema.names)}; see --label-column")
        values = table.data.column(column).to_pylist() if column else [-1] * len(table)
        # Schemas that `datasets` keeps in memory may lack its metadata; the features have it.
        schema = schema.with_metadata(table.features.arrow_schema.metadata)
        labels = read_labels(schema, column or "", values, name)
        found = Found.rows([f"row {r}".encode() for r in range(len(table))])
        if isinstance(table.features[self.image_column], datasets.Image):
            table = table.cast_column(self.image_column, datasets.Image(decode=False))
        self.table = table.select_columns([self.image_column])
        super().__init__("hub", name, found, *labels)

    def read(self, index: int) -> bytes:
        value = self.table[index][self.image_column]
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            raise DataError(f"column {self.image_column} holds no encoded image in this row")
        check_size(len(data))
        return data


def _load(name: str, split: str) -> "datasets.Dataset":
    import datasets

    try:
        table = datasets.load_dataset(name, split=split)
    except Exception as error:  # the library and what it builds on raise dozens of classes
        detail = str(error).strip().split("\n")[0] or type(error).__name__
        text = f"{type(error).__name__} {error}".lower()
        if "gated" in text or "401" in text or "403" in text:
            cure = "Accept its terms on huggingface.co/datasets and log in with `hf auth login`."
        elif "split" in text:
            cure = "Choose another --split."
        else:
            cure = (
                "Check the name and the connection. Without internet: download it elsewhere (`hf download --repo-type "
                f"dataset {name} --local-dir FOLDER`) and prepare that folder."
            )
        raise DataError(f"{name}: the Hub data set cannot be loaded: {detail}. {cure}") from error
    if not isinstance(table, datasets.Dataset):
        raise DataError(f"{name}: --split {split} does not name one split")
    return table
