"""Command lines in words, to be copied into a shell."""

import os
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

SHARED = ("data", "model", "noise", "seed", "training")
"""Sections of a configuration that stage 2 takes over from stage 1..."""
OF_ONE_RUN = ("training.leave_out",)
"""... and settings in them that it does not: they are about the batches of one run."""


def written(*words: str | Path) -> str:
    """A command as a shell reads it."""
    return shlex.join(map(str, words))


def without_home(words: Iterable[str]) -> str:
    """A command as a shell reads it, `~` for the home folder: whose it was is nobody's business."""
    home = os.path.expanduser("~")
    return " ".join(quoted(word.replace(home, "~") if home not in ("~", os.path.sep) else word) for word in words)


def without_home_in(text: str) -> str:
    """Any text, in the same way."""
    home = os.path.expanduser("~")
    return text.replace(f"{home}{os.path.sep}", f"~{os.path.sep}") if home not in ("~", os.path.sep) else text


def quoted(word: str) -> str:
    """In the quotes of a shell where it needs them; `~/` stays outside, where it is read."""
    return f"~/{shlex.quote(word[2:])}" if word.startswith("~/") and len(word) > 2 else shlex.quote(word)


def flag(keys: tuple[str, ...]) -> str:
    """A setting as the command line calls it, without a place in a list."""
    return "--" + ".".join(key.replace("_", "-") for key in keys if not key.isdigit())


def of_sections(flags: Sequence[str], sections: Sequence[str] = SHARED) -> list[str]:
    """Those of the flags of a recipe, each with its values, that belong to these sections."""
    kept, keep = list[str](), False
    for word in flags:
        if word.startswith("--"):
            name = word[2:].partition("=")[0].replace("-", "_")
            keep = name.partition(".")[0] in sections and name not in OF_ONE_RUN
        if keep:
            kept.append(word)
    return kept
