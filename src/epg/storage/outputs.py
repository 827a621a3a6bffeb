"""What `--out` names: a folder or a file that appears whole, and takes the place of nothing but our own."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from epg.errors import OutputError, cause
from epg.storage.files import HIDDEN, clear_rests, hidden, remove, rename, sync_folder
from epg.storage.locks import held


@contextmanager
def replacing_folder(folder: Path, foreign: Callable[[Path], str]) -> Iterator[Path]:
    """Gives a new folder, which takes the place of `folder` when the block ends well; one process at a time.

    An empty folder that is there stays the one that it is, as it may be mounted, and is filled.

    Args:
        foreign: says why a folder that is there is not, all of it, what we wrote; "" where it is.

    Raises OutputError where something else is there, which stays, or nothing can be written; RunLockedError.
    """
    place = place_of(folder)
    with writing(folder):
        place.parent.mkdir(parents=True, exist_ok=True)
        with held(place.with_name(f".{place.name}.lock"), f"--out {folder}", keep=False):
            clear_rests(place.parent, place.name)
            refuse_foreign(place, foreign)
            fill = place.is_dir() and not left_in(place)
            temporary = hidden(place / place.name if fill else place, "tmp")
            try:
                temporary.mkdir()
                yield temporary
                sync_folder(temporary)
                if fill:
                    for entry in sorted(temporary.iterdir(), key=lambda path: path.suffix == ".json"):  # the seal last
                        refuse_existing(place / entry.name)
                        rename(entry, place / entry.name)
                    sync_folder(place)
                else:
                    refuse_foreign(place, foreign)  # the block may have taken long
                    swap(temporary, place)
            finally:
                remove(temporary)


def place_of(folder: Path) -> Path:
    """Where a folder really is. Raises OutputError where it cannot be replaced because this process is in it."""
    place = Path(os.path.realpath(folder))
    if place == Path.cwd() or place in Path.cwd().parents:
        raise OutputError(f"--out {folder}: this command runs inside of it. Choose a new folder.")
    return place


def left_in(folder: Path) -> list[Path]:
    """What is in a folder once what killed processes left there of filling it is removed. Raises OSError."""
    clear_rests(folder, folder.name)
    return list(folder.iterdir())


def swap(temporary: Path, folder: Path) -> None:
    """Gives a complete folder its name; one of ours that has the name is removed. Raises OSError."""
    if folder.exists():
        old = hidden(folder, "old")
        rename(folder, old)
        rename(temporary, folder)
        remove(old)
    else:
        rename(temporary, folder)
    sync_folder(folder.parent)


def refuse_unwritable(out: Path, flag: str = "--out ", *, folder: bool = False) -> None:
    """Raises OutputError where it shows without writing anything that `out` cannot be made: what it would be in is no
    folder, or another user's; or a `folder` is wanted and something else is there. It begins with `flag`."""
    if os.path.lexists(out):
        if folder and not out.is_dir():
            raise OutputError(f"{flag}{out}: is not a folder. Choose another place.")
        return
    above = next(parent for parent in Path(os.path.abspath(out)).parents if os.path.lexists(parent))
    wrong = errno.ENOTDIR if not above.is_dir() else errno.EACCES if not os.access(above, os.W_OK | os.X_OK) else 0
    if wrong:
        raise OutputError(f"{flag}{out}: cannot be written ({cause(OSError(wrong, os.strerror(wrong)))})")


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """OSErrors inside the `with` as OutputErrors that name the flag."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"--out {out}: cannot be written ({cause(error)})") from error


def refuse_foreign(folder: Path, foreign: Callable[[Path], str]) -> None:
    """Raises OutputError where `folder` is there and holds anything that we did not write."""
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise OutputError(f"--out {folder}: is not a folder. Choose another place.")
    if not all(HIDDEN.fullmatch(path.name) for path in folder.iterdir()) and (why := foreign(folder)):
        raise OutputError(f"--out {folder}: {why}. Nothing in it was touched; choose a new folder.")


@contextmanager
def new_file(file: Path) -> Iterator[Path]:
    """Gives `file` in a hidden folder; it and what lies beside it there get their names when the block ends well.

    Raises OutputError where something has one of these names already, or nothing can be written; RunLockedError.
    """
    place = file.absolute()
    with writing(file):
        place.parent.mkdir(parents=True, exist_ok=True)
        with held(place.with_name(f".{place.name}.lock"), f"--out {file}", keep=False):
            clear_rests(place.parent, place.name)
            refuse_existing(file)
            temporary = hidden(place, "tmp")
            try:
                temporary.mkdir()
                yield temporary / place.name
                made = sorted(temporary.iterdir())
                for one in made:
                    refuse_existing(file.with_name(one.name))
                for one in made:
                    rename(one, place.with_name(one.name))
                sync_folder(place.parent)
            finally:
                remove(temporary)


def refuse_existing(file: Path) -> None:
    """Raises OutputError where something has this name."""
    if os.path.lexists(file):
        raise OutputError(f"--out {file}: exists already, and is not overwritten. Remove it, or choose another name.")
