"""One door to every source of images: `open_dataset`."""

from pathlib import Path

from epg.data.base import CachedDataset, ImageDataset, NoSplitError
from epg.data.sources.remote import is_remote
from epg.data.splits import SPLIT_NAMES
from epg.data.store import is_store
from epg.errors import DataError, UserError

__all__ = ["CachedDataset", "ImageDataset", "NoSplitError", "open_dataset"]


def open_dataset(
    source: str | Path,
    *,
    image_size: int,
    channels: int = 3,
    split: str = "train",
    image_column: str | None = None,
    label_column: str | None = None,
) -> ImageDataset:
    """Open "digits", a prepared set, a folder of images, a `.parquet` file or a folder of them.

    An `s3://`, `gs://` or `hf://` address is streamed, shuffled only approximately (`StreamedDataset`). Images come
    out at `image_size`; `channels` is 1 or 3; `split` is train, test, validation or val. The columns are for tables.
    Raises NoSplitError when the source has no such split, UserError or DataError for anything else that is wrong.
    """
    if image_size < 1:
        raise UserError(f"--data.image-size {image_size}: must be at least 1")
    if channels not in (1, 3):
        raise UserError(f"--data.channels {channels}: choose 1 (grey) or 3 (colour)")
    given = {"--data.image-column": image_column, "--data.label-column": label_column}
    flags = [flag for flag, value in given.items() if value is not None]
    if source == "digits":
        from epg.data.digits import DigitsDataset

        _refuse_columns(flags, "digits")
        return DigitsDataset(image_size=image_size, channels=channels, split=split)

    if is_remote(str(source)):
        from epg.data.sources.base import SourceOptions
        from epg.data.sources.open import open_source
        from epg.data.streaming import StreamedDataset

        options = SourceOptions(split=split, image_column=image_column, label_column=label_column)
        return StreamedDataset(open_source(str(source), options), image_size=image_size, channels=channels)

    from epg.data.folder import FolderDataset, pick_split
    from epg.data.parquet import ParquetDataset, check_unsplit, find_parquet, list_parquet

    path = Path(source).expanduser()
    if (store := find_store(path, split)) is not None:
        from epg.data.stored import StoredDataset

        _refuse_columns(flags, str(source))
        return StoredDataset(store, image_size=image_size, channels=channels, split=split)
    if path.is_file() and path.suffix.lower() == ".parquet":
        files = check_unsplit(path, split, [path])
    elif path.is_dir():
        files = find_parquet(path, split)
        if not files:
            path = pick_split(path, split)
            files = list_parquet(path)
    else:
        problem = "is neither a folder nor a .parquet file" if path.exists() else "does not exist"
        raise DataError(
            f"--data.source {source}: {problem}; give a prepared set, a folder of images, a .parquet file, or digits. "
            "Archives and Hub names are prepared first: epg prepare SOURCE FOLDER --image-size SIZE"
        )
    if files:
        return ParquetDataset(
            files,
            image_size=image_size,
            channels=channels,
            image_column=image_column,
            label_column=label_column,
        )
    _refuse_columns(flags, str(source))
    return FolderDataset(path, image_size=image_size, channels=channels)


def find_store(path: Path, split: str) -> Path | None:
    """The prepared set in a folder, or in its sub-folder for `split`; None where it is no prepared set."""
    if is_store(path):
        return path
    return next((path / name for name in SPLIT_NAMES.get(split, ()) if is_store(path / name)), None)


def _refuse_columns(flags: list[str], source: str) -> None:
    if flags:
        raise UserError(f"{' and '.join(flags)} can only be used with parquet files, not with {source}")
