"""Files of the web, of which it is known beforehand what is in them; and where they are kept."""

import hashlib
import os
import urllib.request
from pathlib import Path
from urllib.error import URLError

from epg.messages import say
from epg.storage.files import replacing

PIECE = 2**20  # bytes
PATIENCE_S = 30.0
UNREACHABLE = (URLError, TimeoutError, ConnectionError)
"""What `fetch` raises where the other side does not answer, or refuses."""


class OtherFileError(Exception):
    """What an address gave is not the file that was meant."""


def cache_folder() -> Path:
    """EPG_CACHE, or `epg` in the user's cache folder."""
    if chosen := os.environ.get("EPG_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "epg"


def fetch(address: str, file: Path, sha256: str, largest: int) -> None:
    """Downloads the file with this hash; it gets its name only once it is whole and right.

    Raises OtherFileError where it has another hash or more than `largest` bytes, `UNREACHABLE`, OSError.
    """
    say(f"downloading {address}")
    file.parent.mkdir(parents=True, exist_ok=True)
    with urllib.request.urlopen(address, timeout=PATIENCE_S) as answer, replacing(file) as temporary:
        digest, size = hashlib.sha256(), 0
        refuse_larger(int(answer.headers.get("Content-Length") or 0), largest)
        with temporary.open("wb") as stream:
            while piece := answer.read(PIECE):
                size += len(piece)
                refuse_larger(size, largest)
                digest.update(piece)
                stream.write(piece)
        if digest.hexdigest() != sha256:
            raise OtherFileError(f"its sha256 is {digest.hexdigest()}, not {sha256}")


def refuse_larger(size: int, largest: int) -> None:
    """Raises OtherFileError."""
    if size > largest:
        raise OtherFileError(f"it has more than {largest:,} bytes")
