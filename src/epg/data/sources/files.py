"""A folder of image files: class folders at any depth, flat, or described by a label file."""

import os
import stat
from pathlib import Path

from epg.data.sources.base import Source, SourceOptions, check_size, checked, readable
from epg.data.sources.kinds import is_hidden
from epg.data.sources.layout import arrange
from epg.data.sources.listing import Listing
from epg.storage.plain_file import open_plain

MAX_DEPTH = 64


class FolderSource(Source):
    """Image files below `root`, in the order of their paths as bytes."""

    def __init__(self, root: Path, options: SourceOptions) -> None:
        base = os.fsencode(root.resolve())
        listing = Listing(base)
        walk(os.fsencode(root), b"", listing)
        images = arrange(listing.complete(), lambda name, _: read_file(os.path.join(base, name)), options, str(root))
        self.root = os.path.join(base, images.prefix)
        super().__init__("folder", root.resolve().name, images)
        self.where = f"{Path(root, readable(images.prefix))}/"

    def read(self, index: int) -> bytes:
        return read_file(os.path.join(self.root, self.names[index]))

    def path(self, index: int) -> Path:
        """Where an image is."""
        return Path(os.fsdecode(os.path.join(self.root, self.names[index])))


def open_folder(address: str, options: SourceOptions) -> Source | None:
    """A folder of images that is no other kind of source."""
    path = Path(address).expanduser()
    return FolderSource(path, options) if path.is_dir() else None


def read_file(path: bytes | str | Path) -> bytes:
    """A whole file. Raises DataError where it is empty or too large, OSError for what is no file."""
    with open_plain(path) as stream:
        check_size(os.fstat(stream.fileno()).st_size)
        return checked(stream.read())


def walk(folder: bytes, prefix: bytes, listing: Listing, parents: tuple[tuple[int, int], ...] = ()) -> None:
    """Add the files below `folder` to `listing`, named `prefix/...`.

    Links are followed, but never back into a folder that is being walked; folders that cannot be read are rejected.
    """
    try:
        status = os.stat(folder)
        with os.scandir(folder) as found:
            entries = sorted((entry for entry in found if not is_hidden(entry.name)), key=lambda entry: entry.name)
    except OSError as error:
        listing.reject(prefix or folder, f"the folder cannot be read: {error.strerror}")
        return
    if not entries:
        listing.bare.add(prefix)
    identity = (status.st_dev, status.st_ino)
    if identity in parents:
        listing.reject(prefix, "a link back into a folder above it; not followed")
        return
    if len(parents) >= MAX_DEPTH:
        listing.reject(prefix, f"more than {MAX_DEPTH} folders deep; not read")
        return
    for entry in entries:
        name = prefix + b"/" + entry.name if prefix else entry.name
        if entry.is_symlink() and listing.root and os.path.realpath(entry.path).startswith(listing.root + b"/"):
            listing.twice.append(name)
        try:
            if entry.is_dir():
                walk(entry.path, name, listing, (*parents, identity))
                continue
            status = entry.stat()
        except OSError as error:  # a broken link, a loop of links, no permission
            listing.reject(name, f"it cannot be read: {error.strerror}")
            continue
        if stat.S_ISREG(status.st_mode):
            listing.add(name, status.st_size)
        else:
            listing.reject(name, "it is not a regular file")
