"""Images in object stores and on the Hub's file system (`s3://`, `gs://`, `hf://`), through fsspec."""

import io
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar
from urllib.parse import urlsplit

from epg.data.sources.base import MAX_FILE_BYTES, Listing, Source, SourceOptions, check_size
from epg.data.sources.layout import arrange, is_image
from epg.errors import DataError, UserError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface_hub"}
TRIES = 4
PAUSE_S = 1.0
T = TypeVar("T")


def is_remote(address: str) -> bool:
    return "://" in address or address.startswith("pipe:")


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

    def __init__(self, files: "AbstractFileSystem", root: str, name: str, options: SourceOptions) -> None:
        self.files = files
        root = root.rstrip("/")
        entries = attempt(lambda: files.find(root, detail=True), name)
        listing = Listing()
        for path in entries:
            member = path[len(root) :].strip("/").encode("utf-8", "surrogateescape")
            if is_image(member):
                listing.add(member, int(entries[path].get("size") or 0))
        self.root = root

        def read_extra(member: bytes) -> bytes | None:
            path = f"{root}/{member.decode('utf-8', 'surrogateescape')}"
            return self._read(path) if path in entries else None

        images = arrange(listing.found(), read_extra, options, name)
        super().__init__("remote folder", name, images.found, images.labels, images.class_names)
        self.prefix = images.prefix

    def read(self, index: int) -> bytes:
        check_size(int(self.sizes[index]))
        member = (self.prefix + self.names[index]).decode("utf-8", "surrogateescape")
        return self._read(f"{self.root}/{member}")

    def _read(self, path: str) -> bytes:
        data: bytes = attempt(lambda: self.files.cat_file(path, start=0, end=MAX_FILE_BYTES + 1), path)
        check_size(len(data))
        return data


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
