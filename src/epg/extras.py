"""What to install for what a plain installation lacks: by name, as that works wherever epg itself came from."""

import importlib.metadata
import re
import shlex


def install(extra: str) -> str:
    """The command that brings the packages of an extra, in the versions that epg takes.

    Where no installation says which they are, the extra is named: a package of the index that is called so is another.
    """
    try:
        required = importlib.metadata.requires("epg") or []
    except importlib.metadata.PackageNotFoundError:  # run from its sources
        required = []
    wanted = [r.partition(";")[0].strip() for r in required if re.search(rf"extra == ['\"]{re.escape(extra)}['\"]", r)]
    return f"pip install {shlex.join(wanted)}" if wanted else f"it is among the packages of the extra {extra}"
