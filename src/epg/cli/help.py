"""`epg VERB --help` on one screen: the options that most people need; `--help-all` lists every one.

Verbs, and the groups of options that they share, name the others in `RARE`. These are taken all the same; only the
short help leaves them out.
"""

import sys
from dataclasses import fields
from typing import Annotated, Any, get_type_hints

from epg.cli.options import varied
from epg.messages import folded, width_of

__all__ = ["described"]


def described(verb: type, *, everything: bool) -> type:
    """The verb as its help shows it: paragraphs as wide as the terminal, and without the rare options unless all are
    asked for."""
    import tyro

    rare = frozenset() if everything else frozenset().union(*(vars(part).get("RARE", ()) for part in verb.__mro__))
    types, texts = get_type_hints(verb, include_extras=True), texts_of(verb)
    if not everything:
        texts |= {name: lines[0] for name, kind in types.items() if len(lines := list_of(kind)) > 1}
    kinds = {}
    for one in fields(verb):
        if one.name in rare or one.name in texts:
            note = tyro.conf.Suppress if one.name in rare else tyro.conf.arg(help=texts[one.name])
            kinds[one.name] = Annotated[types[one.name], note]
    return varied(verb, kinds, described_at_all(verb, len(rare)))


def texts_of(verb: type) -> dict[str, str]:
    """What stands below each option in the source, as one paragraph."""
    from docstring_parser import parse_from_object  # what tyro reads them with

    documented = [parse_from_object(part).params for part in reversed(verb.__mro__) if part is not object]
    return {one.arg_name: " ".join((one.description or "").split()) for params in documented for one in params}


def list_of(kind: Any) -> list[str]:
    """The lines of a text that stands in the type of an option: what its choices mean, after the first."""
    notes = [getattr(note, "help", None) for note in getattr(kind, "__metadata__", ())]
    return next((note.splitlines() for note in notes if isinstance(note, str)), [])


def described_at_all(verb: type, rare: int) -> str:
    """What a verb does, each paragraph one line for the terminal, and how many options are left out."""
    paragraphs = [" ".join(text.split()) for text in (verb.__doc__ or "").split("\n\n")]
    paragraphs += [f"The other {rare} options: --help-all"] if rare else []
    return "\n\n".join(folded(text, width_of(sys.stdout)) for text in paragraphs)
