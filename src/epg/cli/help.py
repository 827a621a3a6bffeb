"""`epg VERB --help` on one screen: the options that most people need; `--help-all` lists every one.

Verbs, and the groups of options that they share, name the others in `RARE`. These are taken all the same; only the
short help leaves them out.
"""

from dataclasses import MISSING, dataclass, field, fields
from typing import Annotated, Any, get_type_hints

__all__ = ["brief"]


def brief(verb: type) -> type:
    """The verb as its short help shows it."""
    import tyro

    rare = frozenset().union(*(vars(part).get("RARE", ()) for part in verb.__mro__))
    if not rare:
        return verb
    types = get_type_hints(verb, include_extras=True)
    namespace: dict[str, Any] = {
        "__annotations__": {name: Annotated[types[name], tyro.conf.Suppress] for name in sorted(rare)},
        "__doc__": f"{verb.__doc__}\n\n{len(rare)} more options: --help-all",
    }
    for one in fields(verb):
        if one.name in rare:
            kept: dict[str, Any] = {"kw_only": one.kw_only}
            kept |= {"default": one.default} if one.default is not MISSING else {"default_factory": one.default_factory}
            namespace[one.name] = field(**kept)
    return dataclass(frozen=True)(type(verb.__name__, (verb,), namespace))
