"""What is wrong with a configuration, in words: which setting, on which line, and what was probably meant."""

import difflib
from collections.abc import Callable, Iterator
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

Locate = Callable[[tuple[str, ...]], str]
"""From the path of a setting to where it stands (" (file.yaml line 3)"), "" where that is not known."""
SHOWN = 30


def nowhere(keys: tuple[str, ...]) -> str:
    return ""


def complaints(error: ValidationError, model: type[BaseModel], locate: Locate = nowhere) -> list[str]:
    """One line for each wrong setting; unknown ones with a suggestion."""
    lines = []
    for found in error.errors(include_url=False, include_input=False)[:SHOWN]:
        keys = tuple(str(part) for part in found["loc"])
        place = locate(plain(keys, model))
        if found["type"] == "extra_forbidden":
            lines.append(f"  {'.'.join(plain(keys, model))}: no such setting{suggestion(keys, model)}{place}")
        else:
            lines.append(f"  {'.'.join(keys)}: {found['msg']}{place}")
    if error.error_count() > SHOWN:
        lines.append(f"  and {error.error_count() - SHOWN} more")
    return lines


def suggestion(keys: tuple[str, ...], model: type[BaseModel]) -> str:
    """The setting that was probably meant; if none is close, all there are in this place."""
    names = fields_at(keys[:-1], model)
    close = difflib.get_close_matches(keys[-1].replace("-", "_").lower()[:100], names, n=1)
    return f"; did you mean {close[0]}?" if close else f"; there are {', '.join(names)}"


def fields_at(keys: tuple[str, ...], model: type[BaseModel]) -> list[str]:
    """Names of the settings in a section."""
    here = [model]
    for key in keys:
        tagged = [m for m in here if key in kinds_of(m)]
        here = tagged or [m for one in here if key in one.model_fields for m in models_in(one.model_fields[key])]
    return [name for m in here for name in m.model_fields]


def plain(keys: tuple[str, ...], model: type[BaseModel]) -> tuple[str, ...]:
    """The path as it is written: without the kind of a section, which errors carry as a part of their own."""
    here, written = [model], []
    for key in keys:
        tagged = [m for m in here if key in kinds_of(m)]
        if tagged and not any(key in m.model_fields for m in here):
            here = tagged
            continue
        written.append(key)
        here = [m for one in here if key in one.model_fields for m in models_in(one.model_fields[key])]
    return tuple(written)


def models_in(field: Any) -> Iterator[type[BaseModel]]:
    """The sections that a field can hold."""
    for kind in (field.annotation, *get_args(field.annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield kind


def kinds_of(model: type[BaseModel]) -> tuple[str, ...]:
    field = model.model_fields.get("kind")
    return () if field is None else get_args(field.annotation)
