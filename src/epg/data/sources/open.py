"""One door to every source: `open_source`."""

from collections.abc import Callable
from pathlib import Path

from epg.data.sources.archives import ARCHIVE_SUFFIXES, open_archive
from epg.data.sources.arrays import open_arrays
from epg.data.sources.base import IN_MEMORY, Source, SourceOptions
from epg.data.sources.digits import open_digits
from epg.data.sources.files import open_folder
from epg.data.sources.kinds import cure_of, is_text
from epg.data.sources.remote import is_hub_name, is_remote, open_hub, open_remote
from epg.data.sources.shards import open_shards
from epg.data.sources.table_files import open_tables
from epg.data.sources.tables import TABLE_SUFFIXES
from epg.errors import DataError, path_meant

# Every kind of source: a function from address and options to the source, or None for another kind's; tried in turn.
SOURCES: list[Callable[[str, SourceOptions], Source | None]] = [
    open_digits,
    open_remote,
    open_tables,
    open_archive,
    open_arrays,
    open_shards,
    open_folder,
    open_hub,
]


def is_packed(path: Path) -> bool:
    """Whether a file or folder holds images other than as one file for each: in tables, archives, or an array."""
    packed = (*TABLE_SUFFIXES, *ARCHIVE_SUFFIXES, ".npy")
    if path.is_dir():
        return (path / "dataset_dict.json").is_file() or any(
            file.name.lower().endswith(packed) for file in path.iterdir()
        )
    return path.name.lower().endswith(packed)


def open_source(address: str, options: SourceOptions) -> Source:
    """List a source of images.

    `address` is `digits`, a folder, a zip or tar archive or a folder of them, a parquet or Arrow file or a folder of
    them, what `datasets` saved, an .npz or .npy file, an `s3://`, `gs://` or `hf://` address of any of these, or the
    Hub name of a data set. Raises NoSplitError where it has no such split, UserError or DataError with the cure.
    """
    if address == IN_MEMORY:
        raise DataError(
            "the images of this run were in the memory of a Python program and are on no disk. Name some of the same "
            "kind: --reference or --held-out where the command has it, --data.source in training"
        )
    for open_kind in SOURCES:
        if (source := open_kind(address, options)) is not None:
            return source
    path = Path(address).expanduser()
    if path.exists():
        name = path.name.encode("utf-8", "surrogateescape")
        known = ", ".join((*ARCHIVE_SUFFIXES, *TABLE_SUFFIXES, ".npz", ".npy"))
        cure = f"an unknown kind of file; give a folder, {known}"
        if is_text(name):
            cure = f"a list; give the folder of the images, and {options.flag('label-file')} for a list of labels in it"
        raise DataError(f"{address}: {cure_of(name) or cure}")
    raise nothing_at(address, "--data.source " if options.prefix == "--data." else "")


def refuse_missing(address: str, flag: str = "") -> None:
    """Raises DataError, which begins with `flag`, for an address that leads nowhere; what is here or far away is not
    opened for that."""
    if Path(address).expanduser().exists() or address in ("digits", IN_MEMORY):
        return
    if is_remote(address) or is_hub_name(address):
        return
    if all(open_kind(address, SourceOptions()) is None for open_kind in SOURCES):
        raise nothing_at(address, flag)


def nothing_at(address: str, flag: str) -> DataError:
    return DataError(
        f"{flag}{address}: does not exist; it is neither a file, nor a folder, nor the Hub name of a data set (such as "
        f"user/name).{path_meant(address)}"
    )
