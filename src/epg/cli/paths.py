"""Options that are paths: refused by name before any work where nothing could be read from them or written to them."""

import dataclasses
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

from epg.errors import UserError, cause, shortened

PLACE = "place"
Place = Annotated[str, PLACE]
"""A path, or something else that images or weights are known by: a name of ours, of the Hub, an address."""

ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # s3://; a drive of Windows has one letter
KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@dataclasses.dataclass(frozen=True)
class Names:
    """A note beside the type of an option: what it names."""

    refuse: Callable[[str, str], None]
    """Raises UserError, which begins with the second text, for a name that nothing has, or could be made with."""


def usable(verb: Any) -> Any:
    """A verb with `~` written out in its paths, as no shell does after `--out=`. Raises UserError naming an option."""
    changed = {}
    for option in path_options(type(verb)):
        value = getattr(verb, option.name)
        if isinstance(value, tuple):
            changed[option.name] = tuple(option.checked(item) for item in value)
        elif value is not None:
            changed[option.name] = option.checked(value)
    return dataclasses.replace(verb, **changed)


@dataclasses.dataclass(frozen=True)
class PathOption:
    """One option of a verb that takes a path."""

    name: str
    called: str
    """On the command line, where a note says another name than the field's."""
    positional: bool
    local: bool
    """Whether it is a path and nothing else."""
    names: Names | None

    @property
    def flag(self) -> str:
        return self.called if self.positional else f"--{self.called.replace('_', '-')}"

    def checked(self, value: Any) -> Any:
        text = os.path.expanduser(value)
        if self.local and ADDRESS.match(text):
            raise UserError(f"{self.flag} {shortened(text)}: takes a path on this machine, not an address")
        refuse_unusable(self.flag, text)
        return type(value)(text)


def refuse_names(verb: Any) -> None:
    """Raises UserError for an option that names what is not there, or cannot be made."""
    for option in path_options(type(verb)):
        value = getattr(verb, option.name)
        for item in value if isinstance(value, tuple) else (value,):
            if option.names is not None and item is not None:
                option.names.refuse(str(item), "" if option.positional else f"{option.flag} ")


def path_options(verb: type) -> Iterator[PathOption]:
    """The options of a verb that are paths."""
    for name, kind in get_type_hints(verb, include_extras=True).items():
        parts = list(pieces(kind))
        if Path in parts or PLACE in parts:
            positional = any("Positional" in repr(part) for part in parts)
            called = next((found for part in parts if isinstance(found := getattr(part, "name", None), str)), name)
            names = next((part for part in parts if isinstance(part, Names)), None)
            yield PathOption(name, called, positional, Path in parts, names)


def pieces(kind: Any) -> Iterator[Any]:
    """A type and all that it is made of, notes included."""
    yield kind
    for part in (*get_args(kind), *getattr(kind, "__metadata__", ())):
        yield from pieces(part)


def refuse_unusable(flag: str, path: str) -> None:
    """Raises UserError for a pipe, a device, the root folder, or a path that the system does not take.

    One that is not there is for the reader to name, who knows what was looked for, or for the writer to make.
    """
    if "://" in path:
        return
    if path.startswith("~"):
        raise UserError(f"{flag} {shortened(path)}: the home folder of that user is not known here; write it out")
    if not path.isprintable():
        raise UserError(f"{flag} {shortened(path)}: holds control characters, or bytes that are no text; rename it")
    if os.path.realpath(path) == os.path.sep:
        raise UserError(f"{flag} {shortened(path)}: is the root folder; name one in it")
    try:
        mode = stat.S_IFMT(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise UserError(f"{flag} {shortened(path)}: {cause(error)}") from None
    if mode in KINDS:
        raise UserError(f"{flag} {shortened(path)}: is {KINDS[mode]}; a file or folder is expected")
