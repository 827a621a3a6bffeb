"""Data sets of the Hugging Face Hub by name, through the `datasets` library and its local cache."""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from epg.data.sources.archives import LocalFile
from epg.data.sources.base import Source, SourceOptions
from epg.data.sources.splits import NoSplitError, pick_split, split_names
from epg.data.sources.tables import TableSource
from epg.errors import DataError, InterruptedRunError

if TYPE_CHECKING:
    import datasets

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def open_hub(address: str, options: SourceOptions) -> Source | None:
    """A split of a Hub data set: downloaded once into the cache of `datasets`, memory-mapped from there.

    Raises DataError with the cure where the Hub cannot be reached or access is missing, NoSplitError where the data
    set has no such split.
    """
    if not HUB_NAME.fullmatch(address) or os.path.lexists(Path(address).expanduser().parent):
        return None
    return from_datasets(address, options)


def from_datasets(name: str, options: SourceOptions) -> Source:
    """What `datasets.load_dataset` finds under a name."""
    table = _load(name, options.split)
    files = [str(file["filename"]) for file in table.cache_files]
    if not files:
        raise DataError(f"{name}: `datasets` keeps it in memory; unset HF_DATASETS_IN_MEMORY_MAX_SIZE")
    openers = [(Path(file).name, LocalFile(Path(file))) for file in files]
    # The files may lack the metadata that names columns and classes; the features have it.
    metadata = table.features.arrow_schema.metadata
    return TableSource(openers, name, options, kind="hub", rule=f"split {table.split}; ", metadata=metadata)


def _load(name: str, split: str) -> "datasets.Dataset":
    import datasets

    try:
        names = datasets.get_dataset_split_names(name)
        chosen = pick_split(split_names(names) or {str(n): str(n) for n in names}, split, name)[0]
        table = datasets.load_dataset(name, split=chosen)
    except (NoSplitError, InterruptedRunError):
        raise
    except Exception as error:  # the library and what it builds on raise dozens of classes
        detail = str(error).strip().split("\n")[0] or type(error).__name__
        text = f"{type(error).__name__} {error}".lower()
        if "gated" in text or "401" in text or "403" in text:
            cure = "Accept its terms on huggingface.co/datasets and log in with `hf auth login`."
        else:
            cure = (
                "Check the name and the connection. Without internet: download it elsewhere (`hf download --repo-type "
                f"dataset {name} --local-dir FOLDER`) and prepare that folder."
            )
        raise DataError(f"{name}: the Hub data set cannot be loaded: {detail}. {cure}") from error
    if not isinstance(table, datasets.Dataset):
        raise DataError(f"{name}: --split {split} does not name one split")
    return table
