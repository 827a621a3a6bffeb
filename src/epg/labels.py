"""Which classes are meant: by number or by name, on the command line, in Python and in diffusers' pipeline alike."""

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from epg.errors import UserError

Labels = int | str | Sequence[int | str] | NDArray[Any] | Tensor
"""Integers are class numbers; texts are names, or numbers as the command line has them."""
AS_NAME, AS_NUMBER = "name=", "number="  # what says how an ambiguous text is meant


def class_numbers(
    classes: Labels, names: Sequence[str] = (), count: int | None = None, where: str = "--classes"
) -> list[int]:
    """Class numbers of a model with `count` classes (None: not checked) of these names.

    A name matches in full, or as one of the synonyms that commas separate ("golden retriever, yellow lab"), in upper
    or lower case. A text of digits is the class of that name or the class of that number, whichever there is; where
    they are different classes, `name=3` and `number=3` say which.

    Raises UserError, which begins with `where`: for an unknown name with what comes close, for one of several classes
    and for a number that is also another class's name with the choices.
    """
    return [_class_number(wanted, names, count, where) for wanted in _listed(classes)]


def _listed(classes: Labels) -> list[Any]:
    """Of numpy and torch, Python's own numbers."""
    if isinstance(classes, Tensor | np.ndarray | np.generic):
        classes = classes.tolist()
    if not isinstance(classes, Iterable) or isinstance(classes, str):
        return [classes]
    return [each.tolist() if isinstance(each, Tensor | np.ndarray | np.generic) else each for each in classes]


def _class_number(wanted: Any, names: Sequence[str], count: int | None, where: str) -> int:
    if isinstance(wanted, str):
        return _of_text(wanted, names, count, where)
    if isinstance(wanted, bool) or not isinstance(wanted, int):
        raise UserError(f"{where}: {wanted!r} is neither a class number nor a name")
    return _in_range(wanted, count, where)


def _in_range(number: int, count: int | None, where: str) -> int:
    if not 0 <= number < (count if count is not None else np.inf):
        raise UserError(f"{where} {number}: out of range, the model has classes 0 to {(count or 0) - 1}")
    return number


def _of_text(wanted: str, names: Sequence[str], count: int | None, where: str) -> int:
    found = [names.index(wanted)] if wanted in names else []
    is_number = _is_number(wanted)
    if not found and wanted.startswith(AS_NUMBER) and _is_number(wanted.removeprefix(AS_NUMBER)):
        return _in_range(int(wanted.removeprefix(AS_NUMBER)), count, where)
    by_name = not found and wanted.startswith(AS_NAME)
    plain = _plain(wanted.removeprefix(AS_NAME) if by_name else wanted)
    found = found or [i for i, name in enumerate(names) if plain == _plain(name)]
    found = found or [i for i, name in enumerate(names) if plain in map(_plain, name.split(","))]
    if is_number and not found:
        return _in_range(int(wanted), count, where)
    if is_number and found != [int(wanted)] and int(wanted) < len(names):
        raise UserError(
            f"{where} {wanted}: class number {wanted}, which is called {names[int(wanted)]!r}, or number {found[0]}, "
            f"which is called {names[found[0]]!r}? Pass {AS_NUMBER}{wanted} or {AS_NAME}{wanted}."
        )
    if len(found) == 1:
        return found[0]
    if found:
        meant = "; ".join(f"{i} is {names[i]!r}" for i in found[:5])
        raise UserError(f"{where} {wanted}: {len(found)} classes have this name ({meant}). Pass the number.")
    synonyms = {_plain(part): part.strip() for name in names for part in (name, *name.split(","))}
    close = difflib.get_close_matches(plain, synonyms, n=3)
    hint = f"; did you mean {', '.join(synonyms[name] for name in close)}?" if close else ""
    some = f"; there are {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}" if names and not close else ""
    raise UserError(f"{where} {wanted}: no such class{hint} (a name of the data set, or a number){some}")


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 10


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())
