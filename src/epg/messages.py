"""Lines for whoever waits, on stderr: broken between words as wide as the terminal is."""

import os
import sys
import textwrap
from typing import TextIO


def say(text: str) -> None:
    """Tells one process's user. Raises OSError where nobody can be told."""
    print(folded(text, width_of(sys.stderr)), file=sys.stderr, flush=True)


def width_of(stream: TextIO) -> int:
    """Columns of the terminal that a stream writes to; 0 where there is none."""
    try:
        return os.get_terminal_size(stream.fileno()).columns if stream.isatty() else 0
    except (OSError, ValueError):
        return 0


def folded(text: str, width: int) -> str:
    """Lines broken between words. A broken line is filled with spaces in place of a newline, so that a command that is
    copied out of it is still one line."""
    return "\n".join(_folded(line, width) if 0 < width < len(line) else line for line in text.split("\n"))


def _folded(line: str, width: int) -> str:
    *parts, last = textwrap.wrap(line, width, break_on_hyphens=False) or [line]
    return "".join(part.ljust(width) for part in parts) + last
