"""What is wrong with a configuration, in words: which setting, on which line, and what was probably meant."""

import difflib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from epg.command_line import flag
from epg.config.sections import Section

Locate = Callable[[tuple[str, ...]], str]
"""From the path of a setting to where it stands (" (file.yaml line 3)"), "" where that is not known."""
SHOWN = 30
LARGEST_SHOWN = 10**20
NUMBERS_OF = {"too_short": ("at least", "min_length"), "too_long": ("at most", "max_length")}
BOUNDS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}


def nowhere(keys: tuple[str, ...]) -> str:
    return ""


def complaints(
    error: ValidationError, model: type[BaseModel], locate: Locate = nowhere, missing: bool = True
) -> list[str]:
    """One line for each wrong setting, those that are `missing` among them; unknown ones with a suggestion."""
    errors = [found for found in error.errors(include_url=False) if missing or found["type"] != "missing"]
    lines = []
    for found in errors[:SHOWN]:
        keys = plain(tuple(str(part) for part in found["loc"]), model)
        place = locate(keys) or (locate(keys[:-1]) if found["type"] == "missing" else "")
        if found["type"] == "extra_forbidden":
            lines.append(f"  {'.'.join(keys)}: no such setting{suggestion(keys, model)}{place}")
        elif bound := next((name for name in BOUNDS if name in found.get("ctx", {})), None):
            limit = found["ctx"][bound]
            lines.append(f"  {flag(keys)} {shown(found['input'])}: must be {BOUNDS[bound]} {limit:,g}{place}")
        elif found["type"] in NUMBERS_OF:
            many, name = NUMBERS_OF[found["type"]]
            given, limit = found["ctx"]["actual_length"], found["ctx"][name]
            lines.append(f"  {flag(keys)}: takes {many} {limit} value{'s' if limit > 1 else ''}, not {given}{place}")
        else:
            lines.append(f"  {'.'.join(keys)}: {found['msg']}{place}")
    if len(errors) > SHOWN:
        lines.append(f"  and {len(errors) - SHOWN} more")
    return lines


def inside_of(found: Mapping[str, Any]) -> float | None:
    """A number within the bound that pydantic says was crossed; None where that is not what is wrong."""
    bounds = found.get("ctx", {})
    if "ge" in bounds or "le" in bounds:
        return bounds.get("ge", bounds.get("le"))
    if "gt" in bounds:
        return bounds["gt"] + 1
    return bounds["lt"] / 2 if "lt" in bounds else None


def shown(value: Any) -> str:
    """A number as it was written; not one of a million digits."""
    return str(value)[:40] if not isinstance(value, int) or abs(value) < LARGEST_SHOWN else "(too many digits)"


def suggestion(keys: tuple[str, ...], model: type[BaseModel]) -> str:
    """The setting that was probably meant; if none is close, all there are in this place."""
    name = keys[-1].replace("-", "_").lower()[:100]
    names = fields_at(keys[:-1], model)
    if close := difflib.get_close_matches(name, names, n=1):
        return f"; did you mean {close[0]}?"
    if elsewhere := [".".join(path) for path in every_setting(model) if path[-1] == name]:
        return f"; did you mean {' or '.join(elsewhere[:3])}?"
    return f"; there are {', '.join(names)}"


def every_setting(model: type[BaseModel], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The paths of all settings, each once whatever the kinds of its section."""
    paths = dict.fromkeys(_walk(model, above))
    yield from paths


def _walk(model: type[BaseModel], above: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    for name, field in model.model_fields.items():
        yield (*above, name)
        for inner in models_in(field):
            yield from _walk(inner, (*above, name))


def fields_at(keys: tuple[str, ...], model: type[BaseModel]) -> list[str]:
    """Names of the settings in a section."""
    here = [model]
    for key in keys:
        tagged = [m for m in here if key in kinds_of(m)]
        here = tagged or [m for one in here if key in one.model_fields for m in models_in(one.model_fields[key])]
    return list(dict.fromkeys(name for m in here for name in m.model_fields))


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
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from kind.kinds()


def kinds_of(model: type[BaseModel]) -> tuple[str, ...]:
    field = model.model_fields.get("kind")
    return () if field is None else get_args(field.annotation)
