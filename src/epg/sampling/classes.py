"""Classes by number or by name."""

import difflib
from collections.abc import Sequence

from epg.errors import UserError


def class_numbers(classes: Sequence[str], names: Sequence[str]) -> list[int]:
    """Labels from class names or numbers.

    A name matches in full, or as one of the synonyms that commas separate ("golden retriever, yellow lab"), in upper
    or lower case. Raises UserError with what comes close for an unknown name, with the numbers for an ambiguous one.
    """
    return [_class_number(wanted, names) for wanted in classes]


def _class_number(wanted: str, names: Sequence[str]) -> int:
    if wanted in names:
        return names.index(wanted)
    if wanted.isascii() and wanted.isdecimal() and len(wanted) < 10:
        return int(wanted)
    plain = _plain(wanted)
    found = [i for i, name in enumerate(names) if plain == _plain(name)]
    found = found or [i for i, name in enumerate(names) if plain in map(_plain, name.split(","))]
    if len(found) == 1:
        return found[0]
    if found:
        meant = "; ".join(f"{i} is {names[i]!r}" for i in found[:5])
        raise UserError(f"--classes {wanted}: {len(found)} classes have this name ({meant}). Pass the number.")
    synonyms = {_plain(part): part.strip() for name in names for part in (name, *name.split(","))}
    close = difflib.get_close_matches(plain, synonyms, n=3)
    hint = f"; did you mean {', '.join(synonyms[name] for name in close)}?" if close else ""
    raise UserError(f"--classes {wanted}: no such class{hint} (a name of the data set, or a number)")


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())
