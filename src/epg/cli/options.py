"""The options of a verb, as tyro reads them without a type checker.

Tyro compares the default of every option with its type. Where that is more than a class (`tuple[int, ...]`, `Path |
None`) it imports typeguard, and with it asyncio and unittest: as much again as all else that the help of a verb takes.
"""

import functools
import operator
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

__all__ = ["light", "light_kind", "plain", "varied"]


def light(verb: type) -> type:
    """The verb with options of `light_kind`."""
    types = get_type_hints(verb, include_extras=True)
    kinds = {one.name: light_kind(types[one.name]) for one in fields(verb)}
    return varied(verb, {name: kind for name, kind in kinds.items() if kind is not types[name]})


def light_kind(kind: Any) -> Any:
    """A class, and beside it how tyro reads the words of what this type is; or this, if there is nothing to check."""
    from tyro.conf import UseAppendAction
    from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

    bare, *notes = get_args(kind) if get_origin(kind) is Annotated else (kind,)
    if get_origin(bare) in (None, Literal):
        return kind
    how = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(kind, set()))
    if not isinstance(how, PrimitiveConstructorSpec):
        return kind
    return Annotated[tuple if UseAppendAction in notes else object, how, *notes]


def plain(kind: Any) -> Any:
    """A type without notes of others, such as pydantic's, at any depth: complaints of tyro name it."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return plain(inner[0])
    if origin in (None, Literal) or not inner:
        return kind
    parts = tuple(one if one is Ellipsis else plain(one) for one in inner)
    return functools.reduce(operator.or_, parts) if origin in (Union, UnionType) else origin[parts]


def varied(verb: type, kinds: Mapping[str, Any], text: str | None = None) -> type:
    """The verb with other types of some of its options, and another text of what it does; defaults stay."""
    namespace: dict[str, Any] = {"__annotations__": dict(kinds), "__doc__": verb.__doc__ if text is None else text}
    namespace |= {one.name: kept(one) for one in fields(verb) if one.name in kinds}
    return dataclass(frozen=True)(type(verb.__name__, (verb,), namespace))


def kept(one: "Field[Any]") -> Any:
    """A field with the default that it has."""
    if one.default is not MISSING:
        return field(default=one.default, kw_only=one.kw_only)
    if one.default_factory is not MISSING:
        return field(default_factory=one.default_factory, kw_only=one.kw_only)
    return field(kw_only=one.kw_only)
