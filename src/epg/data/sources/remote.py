"""Images far away: in object stores and on the Hub's file system (`s3://`, `gs://`, `hf://`), through fsspec; and data
sets of the Hub by name, through the `datasets` library and its local cache."""

import io
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar
from urllib.parse import urlsplit

from epg.data.sources.archives import ARCHIVE_SUFFIXES, LocalFile
from epg.data.sources.base import MAX_FILE_BYTES, Source, SourceOptions, check_size
from epg.data.sources.layout import arrange
from epg.data.sources.listing import Listing
from epg.data.sources.shards import of_archives
from epg.data.sources.splits import NoSplitError, pick_split, split_names
from epg.data.sources.table_files import tables_of_split
from epg.data.sources.tables import TABLE_SUFFIXES, TableSource
from epg.errors import DataError, InterruptedRunError, UserError
from epg.messages import say
from epg.storage import hub

if TYPE_CHECKING:
    import datasets
    from fsspec import AbstractFileSystem

PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface_hub"}
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
TRIES = 4
PAUSE_S = 1.0
T = TypeVar("T")


def is_remote(address: str) -> bool:
    return "://" in address or address.startswith("pipe:")


def is_hub_name(address: str) -> bool:
    """Whether this can only be the name of a data set on the Hub: nothing here is called so, nor the folder it would be
    in."""
    above = Path(address).expanduser().parent
    return bool(HUB_NAME.fullmatch(address)) and not os.path.lexists(above) and str(above) not in hub.FOLDERS


def connect(address: str) -> tuple["AbstractFileSystem", str]:
    """The file system of an address and the path in it.

    Only `PACKAGES` may be named: other schemes of fsspec chain, execute or read what nobody meant to offer.
    """
    scheme = address.split(":", 1)[0].lower()
    if scheme not in PACKAGES or "::" in address:
        raise UserError(
            f"{address.split('://')[0]}://: no such source. Give a folder, an archive, a parquet file, a Hub name, "
            f"digits, or an address that starts with {', '.join(f'{s}://' for s in PACKAGES)}"
        )
    import fsspec

    try:
        files, path = fsspec.core.url_to_fs(address)
    except ImportError as error:
        raise UserError(f"{scheme}:// needs the package {PACKAGES[scheme]}: pip install {PACKAGES[scheme]}") from error
    return files, str(path)


def public_name(address: str) -> str:
    """An address without user, password and query."""
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


class RemoteFolderSource(Source):
    """All images below a folder of an object store, in the order of their names."""

    streamed = True

    def __init__(self, files: "AbstractFileSystem", root: str, name: str, options: SourceOptions) -> None:
        self.files, self.root = files, root.rstrip("/")
        entries = attempt(lambda: files.find(self.root, detail=True), name)
        listing = Listing()
        for path in entries:
            member = path[len(self.root) :].strip("/").encode("utf-8", "surrogateescape")
            listing.add(member, int(entries[path].get("size") or 0))
        images = arrange(listing.complete(), lambda member, _: self._read(member), options, name)
        super().__init__("remote folder", name, images)
        self.prefix = images.prefix

    def read(self, index: int) -> bytes:
        check_size(int(self.sizes[index]))
        return self._read(self.prefix + self.names[index])

    def _read(self, member: bytes) -> bytes:
        path = f"{self.root}/{member.decode('utf-8', 'surrogateescape')}"
        data: bytes = attempt(lambda: self.files.cat_file(path, start=0, end=MAX_FILE_BYTES + 1), path)
        check_size(len(data))
        return data


def open_remote(address: str, options: SourceOptions) -> Source | None:
    """An `s3://`, `gs://` or `hf://` address of a table, an archive, or a folder of tables, archives or images."""
    if not is_remote(address):
        return None
    files, path = connect(address)
    name = public_name(address)
    if attempt(lambda: files.isdir(path), name):
        listing = [str(file) for file in attempt(lambda: files.find(path, detail=False), name)]
    else:
        listing = [path]
    tables = [file for file in listing if file.lower().endswith(TABLE_SUFFIXES)]
    if tables:
        chosen, rule = tables_of_split(tables, options.split, name) if tables != [path] else (tables, "")
        openers = [(file.rpartition("/")[2], RemoteFile(files, file)) for file in chosen]
        return TableSource(openers, name, options, rule=rule, streamed=True)
    archives = [file for file in listing if file.lower().endswith(ARCHIVE_SUFFIXES)]
    if archives and len(archives) * 2 > len(listing):
        source = of_archives([(file.rpartition("/")[2], RemoteFile(files, file)) for file in archives], name, options)
        source.streamed = True
        return source
    if listing == [path]:
        raise DataError(f"{name}: no such file or folder, or an unknown kind of file")
    return RemoteFolderSource(files, path, name, options)


class RemoteFile:
    """Opens one file of a remote file system; picklable."""

    def __init__(self, files: "AbstractFileSystem", path: str) -> None:
        self.files, self.path = files, path

    def __call__(self) -> BinaryIO:
        stream: Any = attempt(lambda: self.files.open(self.path, "rb"), self.path)
        return io.BufferedReader(stream, 2**20) if isinstance(stream, io.RawIOBase) else stream


def attempt(action: Callable[[], T], what: str) -> T:
    """The result of a request, tried again after failures that may pass.

    Raises DataError for what does not exist or is forbidden, UserError (which ends a preparation, to be continued
    later) where the other side cannot be reached: an outage must not drop images.
    """
    for attempt_number in range(TRIES):
        try:
            return action()
        except FileNotFoundError as error:
            raise DataError(f"{what}: there is no such file") from error
        except PermissionError as error:
            raise DataError(f"{what}: access denied ({error}); check the credentials") from error
        except Exception as error:  # whatever the client library raises for timeouts, resets and 5xx
            if attempt_number == TRIES - 1:
                raise UserError(
                    f"{what}: {type(error).__name__}: {error}, {TRIES} times. Check connection and credentials, then "
                    "run the same command again"
                ) from error
            time.sleep(PAUSE_S * 2**attempt_number)
    raise AssertionError


def open_hub(address: str, options: SourceOptions) -> Source | None:
    """A split of a Hub data set: downloaded once into the cache of `datasets`, memory-mapped from there.

    Raises DataError with the cure where the Hub cannot be reached or access is missing, NoSplitError where the data
    set has no such split.
    """
    return from_datasets(address, options) if is_hub_name(address) else None


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

    if os.environ.get("RANK", "0") == "0":
        say(f"{name}: the Hub is asked for it")  # without a network for half a minute
    try:
        with hub.quietly():
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
