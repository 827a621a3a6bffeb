"""What a power failure may leave: recorded file operations, replayed on a disk that forgets what was not synced.

A file keeps what it held at its last sync; of what was written since, nothing, a part, all or zeros. Names in a
folder are as at its last sync; of the changes since (create, rename, remove), any may have reached the disk.
"""

import random
from dataclasses import dataclass, field
from pathlib import Path

from epg.storage.files import Operation


@dataclass
class File:
    synced: bytes = b""
    since: bytes = b""

    def after_loss(self, chooser: random.Random) -> bytes:
        kept = chooser.choice([0, len(self.since), chooser.randint(0, len(self.since))])
        lost = self.since[:kept] if chooser.random() < 0.7 else bytes(kept)
        return self.synced + lost


@dataclass
class Folder:
    durable: "dict[str, File | Folder]" = field(default_factory=dict)
    names: "dict[str, File | Folder]" = field(default_factory=dict)
    pending: "list[tuple[str | None, str | None, File | Folder]]" = field(default_factory=list)
    """(old name, new name, what), a missing name being none."""

    def change(self, old: str | None, new: str | None, what: "File | Folder") -> None:
        self.names = _changed(self.names, old, new, what)
        self.pending.append((old, new, what))

    def sync(self) -> None:
        self.durable, self.pending = dict(self.names), []

    def after_loss(self, chooser: random.Random) -> "dict[str, File | Folder]":
        names = self.durable
        likely = chooser.choice([0.0, 0.5, 1.0])
        for old, new, what in self.pending:
            if chooser.random() < likely:
                names = _changed(names, old, new, what)
        return names


def _changed(
    names: "dict[str, File | Folder]", old: str | None, new: str | None, what: "File | Folder"
) -> "dict[str, File | Folder]":
    names = dict(names)
    if old is not None and names.get(old) is what:
        del names[old]
    if new is not None:
        names[new] = what
    return names


class Disk:
    """A folder tree, all of it safe at first."""

    def __init__(self, root: Path) -> None:
        self.root, self.tree = root, self._load(root)

    def _load(self, path: Path) -> Folder:
        names: dict[str, File | Folder] = {
            child.name: self._load(child) if child.is_dir() else File(child.read_bytes()) for child in path.iterdir()
        }
        return Folder(dict(names), names)

    def _at(self, path: Path) -> File | Folder:
        found: File | Folder = self.tree
        for part in path.relative_to(self.root).parts:
            assert isinstance(found, Folder)
            found = found.names[part]
        return found

    def _parent(self, path: Path) -> Folder:
        found = self._at(path.parent)
        assert isinstance(found, Folder)
        return found

    def apply(self, operation: Operation) -> None:
        path = operation.path
        match operation.kind:
            case "mkdir":
                self._parent(path).change(None, path.name, Folder())
            case "open":
                self._parent(path).change(None, path.name, File())
            case "write":
                file = self._at(path)
                assert isinstance(file, File)
                assert operation.data is not None
                file.since += bytes(operation.data)
            case "fsync":
                found = self._at(path)
                if isinstance(found, File):
                    found.synced, found.since = found.synced + found.since, b""
                else:
                    found.sync()
            case "rename":
                assert operation.target is not None
                assert operation.target.parent == path.parent
                self._parent(path).change(path.name, operation.target.name, self._at(path))
            case "unlink" | "rmdir":
                self._parent(path).change(path.name, None, self._at(path))

    def write_after_loss(self, target: Path, chooser: random.Random) -> None:
        """Writes what is left after the power went into an empty folder."""
        self._write(self.tree, target, chooser)

    def _write(self, folder: Folder, target: Path, chooser: random.Random) -> None:
        target.mkdir(exist_ok=True)
        for name, what in folder.after_loss(chooser).items():
            if isinstance(what, Folder):
                self._write(what, target / name, chooser)
            else:
                (target / name).write_bytes(what.after_loss(chooser))
