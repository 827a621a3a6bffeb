"""What a process of ours needs from its surroundings, whoever started it."""

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper

ENOUGH_FILES = 4096  # open at once: loader processes, shards and a large model's export need a few hundred


def settle() -> None:
    """Gives closed standard streams a place to go, and allows as many open files as the system does, up to enough.

    A file that is opened while a stream is closed would get its number, and whatever is printed from C.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    try:
        import resource
    except ImportError:  # there are no such limits on Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = ENOUGH_FILES if hard == resource.RLIM_INFINITY else min(ENOUGH_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def of_several() -> bool:
    """Whether torchrun, or a scheduler, has started more processes of this command, which are to agree what to do."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def plain_output() -> Iterator[None]:
    """Inside the `with` a warning is one line without source path, and a character that the terminal lacks (or a file
    name that is no text) is written as its code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    before, warnings.formatwarning = warnings.formatwarning, one_line
    try:
        yield
    finally:
        warnings.formatwarning = before


def one_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    return f"warning: {' '.join(str(message).split())}\n"
