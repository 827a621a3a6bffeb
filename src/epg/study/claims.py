"""Who works on which cell: a file that only one process can create, kept fresh while it works.

A claim is free again when its process is gone (seen on the same machine), or when it was not refreshed for `STALE`
seconds (of another machine, by the clock of the file system). A run folder has a lock of its own below that: two
processes that took over at the same moment do not write to one run, where the file system knows locks.
"""

import contextlib
import json
import os
import secrets
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from epg.storage.files import hidden

FILE = "claim.json"
BEAT = 10.0  # seconds between signs of life
STALE = 120.0


@dataclass(frozen=True)
class Claim:
    """Who holds a cell."""

    host: str
    pid: int
    token: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


@contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """Whether the cell in a folder is ours inside the `with`; a claim whose holder is gone is taken over."""
    folder.mkdir(parents=True, exist_ok=True)
    mine = Claim(socket.gethostname(), os.getpid(), secrets.token_hex(8))
    if not _create(folder / FILE, mine) and not (_release_stale(folder / FILE) and _create(folder / FILE, mine)):
        yield False
        return
    done = threading.Event()
    beating = threading.Thread(target=_beat, args=(folder / FILE, done), name="heartbeat", daemon=True)
    beating.start()
    try:
        yield True
    finally:
        done.set()
        beating.join()
        if holder(folder) == mine:
            (folder / FILE).unlink(missing_ok=True)


def holder(folder: Path) -> Claim | None:
    """Who says that the cell is theirs."""
    try:
        content = json.loads((folder / FILE).read_text())
        return Claim(str(content["host"]), int(content["pid"]), str(content["token"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _create(file: Path, claim: Claim) -> bool:
    """Atomic: the whole file appears, or another one is there."""
    temporary = hidden(file, "tmp")
    temporary.write_text(json.dumps(claim.__dict__))
    try:
        os.link(temporary, file)
    except FileExistsError:
        return False
    except OSError:  # a file system without links
        try:
            with file.open("x") as stream:
                stream.write(json.dumps(claim.__dict__))
        except FileExistsError:
            return False
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _release_stale(file: Path) -> bool:
    """Takes the claim of a holder that is gone out of the way; whether it did."""
    before = holder(file.parent)
    if not _gone(file, before):
        return False
    rest = hidden(file, "rest")
    try:
        os.rename(file, rest)  # one process alone succeeds
        taken = json.loads(rest.read_text()).get("token")
        if before is not None and taken != before.token:  # a new claim, made since we looked
            with contextlib.suppress(OSError):
                os.link(rest, file)
            return False
    except (OSError, ValueError):
        return not file.exists()
    finally:
        rest.unlink(missing_ok=True)
    return True


def _gone(file: Path, claim: Claim | None) -> bool:
    if claim is not None and claim.host == socket.gethostname() and os.name != "nt":  # there 0 is a signal
        try:
            os.kill(claim.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:
            pass
    try:
        return _clock(file.parent) - file.stat().st_mtime > STALE
    except FileNotFoundError:
        return True


def _clock(folder: Path) -> float:
    """What time it is for the file system, which several machines share while their own clocks differ."""
    probe = hidden(folder / "clock", "tmp")
    probe.touch()
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _beat(file: Path, done: threading.Event) -> None:
    while not done.wait(BEAT):
        with contextlib.suppress(OSError):
            os.utime(file)
