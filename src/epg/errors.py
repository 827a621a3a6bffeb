"""What a user can put right: every message names the file or flag and the cure.

The command line prints these without a traceback and exits with `exit_code`; so it does with an OSError, which names a
file by itself. Anything else is a bug and keeps its traceback.
"""

import difflib
import errno
import os
from collections.abc import Iterable
from pathlib import Path

from epg.command_line import without_home_in

CURES = {
    errno.ENOSPC: "make room, or choose another place",
    errno.EDQUOT: "make room, or choose another place",
    errno.EROFS: "choose a place that can be written to",
    errno.EACCES: "change its permissions, or choose another place",
    errno.EPERM: "change its permissions, or choose another place",
    errno.EEXIST: "choose another name",
    errno.EISDIR: "choose another name",
    errno.EMFILE: "allow more with `ulimit -n 4096`, or use fewer worker processes",
    errno.ENFILE: "close other programs",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "its links lead round in a circle",
    errno.ENOTDIR: "a part of this path is a file",
    errno.ENOMEM: "close other programs, or ask for less at once",
}


def cause(error: OSError) -> str:
    """What went wrong with a file and, where that is known, the cure: "No space left on device: make room, ..."."""
    text = os.strerror(error.errno) if error.errno in CURES else error.strerror or str(error)
    return f"{text}: {CURES[error.errno]}" if error.errno in CURES else text


def shortened(text: str, length: int = 80) -> str:
    """A name as it may stand in a message: on one line, and not of any length."""
    plain = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return plain if len(plain) <= length else f"{plain[: length // 2]}...{plain[-length // 2 + 3 :]}"


def meant(name: str, known: Iterable[str]) -> str:
    """A question to add where a name is not known: " Did you mean small?"; "" where nothing is like it."""
    close = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean {close[0]}?" if close else ""


def path_meant(path: str | Path) -> str:
    """The same for a path that is not there, of what lies beside its first part that is missing; or where it was looked
    for, as that folder may be the wrong one."""
    missing = Path(path).expanduser()
    while not missing.parent.exists():
        missing = missing.parent
    try:
        beside = [name for name in os.listdir(missing.parent) if not name.startswith(".")]
    except OSError:
        return ""
    close = difflib.get_close_matches(missing.name, beside, n=1)
    if close:
        return f" Did you mean {missing.parent / close[0]}?"
    return "" if missing.is_absolute() else f" It was looked for in {without_home_in(os.path.join(os.getcwd(), ''))}."


class UserError(Exception):
    """Wrong usage: a flag, a recipe, a combination of settings."""

    exit_code = 2


class DataError(UserError):
    """Images or labels that cannot be used."""

    exit_code = 65


class DivergedError(UserError):
    """A loss or gradient that is not finite."""

    exit_code = 70


class RunLockedError(UserError):
    """Another process is writing to this run folder."""

    exit_code = 73


class OutputError(UserError):
    """A file that could not be written."""

    exit_code = 74


class InterruptedRunError(UserError):
    """The run was asked to stop and saved a checkpoint first."""

    exit_code = 75


class ArtefactError(UserError):
    """A checkpoint or weight file that is missing, damaged or of another architecture."""

    exit_code = 77


class PeerError(UserError):
    """Another process of this run failed; it says why. Has that process's exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def refuse_missing(path: str | Path, flag: str = "") -> None:
    """Raises ArtefactError, which begins with `flag`, where there is nothing."""
    if not Path(path).exists():
        raise ArtefactError(f"{flag}{path}: does not exist.{path_meant(path)}")
