"""A folder of image files: class folders at any depth, flat, or described by metadata.csv or metadata.jsonl."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from epg.data.sources.base import MAX_FILE_BYTES, Listing, Source, SourceOptions, check_size
from epg.data.sources.layout import arrange, is_hidden, is_image
from epg.errors import DataError

MAX_DEPTH = 64


class FolderSource(Source):
    """Image files below `root`, in the order of their paths as bytes."""

    def __init__(self, root: Path, options: SourceOptions) -> None:
        listing = Listing()
        walk(os.fsencode(root), b"", listing)
        self.root = root.resolve()
        images = arrange(listing.found(), self._read_extra, options, str(root))
        super().__init__("folder", root.resolve().name, images.found, images.labels, images.class_names)
        self.prefix = images.prefix

    def read(self, index: int) -> bytes:
        return read_file(os.path.join(os.fsencode(self.root), self.prefix + self.names[index]))

    def _read_extra(self, name: bytes) -> bytes | None:
        path = os.path.join(os.fsencode(self.root), name)
        return read_file(path) if os.path.isfile(path) else None


def read_file(path: bytes | str | Path) -> bytes:
    """A whole regular file. Raises DataError for what is none, empty or too large; never blocks on a pipe."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as stream:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise DataError("it is not a regular file")
        check_size(status.st_size)
        data = stream.read(MAX_FILE_BYTES + 1)
    check_size(len(data))
    return data


def walk(folder: bytes, prefix: bytes, listing: Listing, parents: tuple[tuple[int, int], ...] = ()) -> None:
    """Add the images below `folder` to `listing`, named `prefix/...`.

    Links are followed, but never back into a folder that is being walked; folders that cannot be read are rejected.
    """
    try:
        status = os.stat(folder)
        entries = sorted(_entries(folder), key=lambda entry: entry.name)
    except OSError as error:
        listing.reject(prefix or folder, f"the folder cannot be read: {error.strerror}")
        return
    identity = (status.st_dev, status.st_ino)
    if identity in parents:
        listing.reject(prefix, "a link back into a folder above it; not followed")
        return
    if len(parents) >= MAX_DEPTH:
        listing.reject(prefix, f"more than {MAX_DEPTH} folders deep; not read")
        return
    for entry in entries:
        name = prefix + b"/" + entry.name if prefix else entry.name
        try:
            if entry.is_dir():
                walk(entry.path, name, listing, (*parents, identity))
            elif is_image(entry.name):
                status = entry.stat()
                if stat.S_ISREG(status.st_mode):
                    listing.add(name, status.st_size)
                else:
                    listing.reject(name, "it is not a regular file")
        except OSError as error:  # a broken link, a loop of links, no permission
            listing.reject(name, f"it cannot be read: {error.strerror}")


def _entries(folder: bytes) -> Iterator[os.DirEntry[bytes]]:
    with os.scandir(folder) as entries:
        yield from (entry for entry in entries if not is_hidden(entry.name))
