"""The verbs, and from a command line to one of them. Heavy modules are imported by the verb that needs them."""

import dataclasses
import difflib
import importlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, get_type_hints

from epg import signals
from epg.cli.help import described
from epg.cli.numbers import in_range
from epg.cli.options import light
from epg.cli.paths import refuse_names, usable
from epg.cli.process import of_several
from epg.command_line import written
from epg.errors import InterruptedRunError, UserError, shortened

__all__ = ["VERBS", "parse", "run"]


class Verbs(Mapping[str, type]):
    """Each verb is a dataclass of its options, and calling it does what it says. Imported when it is asked for."""

    PLACES: ClassVar[dict[str, Callable[[], type]]] = {
        "quickstart": lambda: importlib.import_module("epg.cli.quickstart").Quickstart,
        "prepare": lambda: importlib.import_module("epg.cli.data").Prepare,
        "inspect": lambda: importlib.import_module("epg.cli.data").Inspect,
        "pretrain": lambda: importlib.import_module("epg.cli.train").Pretrain,
        "finetune": lambda: importlib.import_module("epg.cli.train").Finetune,
        "sample": lambda: importlib.import_module("epg.cli.sample").Sample,
        "demo": lambda: importlib.import_module("epg.cli.demo").Demo,
        "evaluate": lambda: importlib.import_module("epg.cli.evaluate").Evaluate,
        "reference": lambda: importlib.import_module("epg.cli.evaluate").MakeReference,
        "compare": lambda: importlib.import_module("epg.cli.compare").Compare,
        "report": lambda: importlib.import_module("epg.cli.compare").Report,
        "sweep": lambda: importlib.import_module("epg.cli.sweep").Sweep,
        "study": lambda: importlib.import_module("epg.cli.study").Study,
        "neighbours": lambda: importlib.import_module("epg.cli.probe").Neighbours,
        "denoising": lambda: importlib.import_module("epg.cli.probe").Denoising,
        "probe": lambda: importlib.import_module("epg.cli.probe").Probe,
        "features": lambda: importlib.import_module("epg.cli.probe").Features,
        "convert": lambda: importlib.import_module("epg.cli.convert").Convert,
        "verify": lambda: importlib.import_module("epg.cli.tools").Verify,
        "ema": lambda: importlib.import_module("epg.cli.tools").Ema,
        "info": lambda: importlib.import_module("epg.cli.tools").Info,
        "schema": lambda: importlib.import_module("epg.cli.editor").Schema,
        "completion": lambda: importlib.import_module("epg.cli.editor").Completion,
        "bench": lambda: importlib.import_module("epg.cli.bench").Bench,
    }

    def __getitem__(self, name: str) -> type:
        return self.PLACES[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self.PLACES)

    def __len__(self) -> int:
        return len(self.PLACES)


VERBS = Verbs()


def run(arguments: list[str]) -> None:
    """Does what a command line says."""
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:2], "--help"]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
    elif arguments[0] == "--version":
        from importlib.metadata import version  # as slow to import as everything else here

        print(version("epg"))
    else:
        verb, overrides = parse(arguments)
        if not of_several():
            refuse_names(verb)
        try:
            verb() if overrides is None else verb(overrides)
        except (Exception, KeyboardInterrupt) as error:
            number = signals.answered()
            if not number or not getattr(verb, "CONTINUES", False) or isinstance(error, InterruptedRunError):
                raise
            text = f"stopped by {signals.name_of(number)}; the same command continues"
            raise InterruptedRunError(text) from error


def parse(arguments: list[str]) -> tuple[Any, list[str] | None]:
    """The verb with its options, ready to be called, and the flags left for the recipe if it takes one's."""
    name, rest = arguments[0], arguments[1:]
    for before, argument in pairwise(arguments):
        if "\0" in argument:
            raise UserError(f"{before} {shortened(argument)}: holds a NUL character")
        if not argument or re.fullmatch(r"--[\w.-]+=", argument):
            raise UserError(
                f"{argument.strip('=') or before}: is followed by nothing (a variable of the shell that is not set?)"
            )
    refuse_oblong(arguments)
    if name not in VERBS:
        close = difflib.get_close_matches(name, VERBS, n=1)
        hint = f"; did you mean {close[0]}?" if close else "."
        raise UserError(f"{name!r} is no command{hint} Commands: {', '.join(VERBS)}")
    verb = VERBS[name]
    refuse_nameless(name, verb, rest)
    refuse_named(name, verb, rest)
    shown = verb
    if {"-h", "--help", "--help-all"} & {*rest}:
        shown = described(verb, everything="--help-all" in rest)
        rest = ["--help" if argument == "--help-all" else argument for argument in rest]
    options: Any
    if getattr(verb, "TAKES_OVERRIDES", False):
        options, overrides = parse_with_overrides(name, light(shown), rest)
    else:
        import tyro

        options, overrides = tyro.cli(light(shown), args=rest, prog=f"epg {name}"), None
    return in_range(usable(verb(**vars(options)))), overrides


def refuse_nameless(name: str, verb: type, rest: list[str]) -> None:
    """Raises UserError for a value in front of all options, of a verb that takes none there."""
    if rest and not rest[0].startswith("-") and not any("Positional" in str(kind) for kind in types_of(verb)):
        option = f"--{dataclasses.fields(verb)[0].name}"
        raise UserError(f"{rest[0]}: of which option? Perhaps {written('epg', name, option, *rest)}")


def refuse_named(name: str, verb: type, rest: list[str]) -> None:
    """Raises UserError for an option that is none: what is told by its place alone."""
    hints = get_type_hints(verb, include_extras=True)
    places = [field for field, kind in hints.items() if "Positional" in str(kind)]
    for field in places:
        if f"--{field}" in [word.partition("=")[0] for word in rest]:
            words = " ".join(place.upper() for place in places)
            raise UserError(f"--{field}: is told by its place, without a flag: epg {name} {words} ...")


def types_of(verb: type) -> Iterable[object]:
    return get_type_hints(verb, include_extras=True).values()


def refuse_oblong(arguments: list[str]) -> None:
    """Raises UserError for a size of two numbers: 64x32, 64,32 or 64 32."""
    for place, argument in enumerate(arguments):
        flag, sign, value = argument.partition("=")
        if not re.fullmatch(r"--(data\.)?image[-_]size", flag):
            continue
        given = [value] if sign else arguments[place + 1 : place + 3]
        if len(given) > 1 and not (given[0].isdecimal() and given[1].isdecimal() and not Path(given[1]).exists()):
            given = given[:1]  # what follows is another argument
        if re.fullmatch(r"[\[(]?\d+[x\u00d7*, ]+\d+[\])]?", text := " ".join(given), re.IGNORECASE):
            raise UserError(
                f"{flag} {text}: only squares are trained on. Give one number: oblong images are cropped to their "
                "centre square; to keep all of them, pad them beforehand (PIL.ImageOps.pad)"
            )


def parse_with_overrides(name: str, verb: type, rest: list[str]) -> tuple[Any, list[str]]:
    """The verb's own options, and the rest for the recipe's fields. `--help` after a recipe lists those."""
    import tyro

    asked = [argument for argument in rest if argument not in ("-h", "--help")]
    wants_help = len(asked) < len(rest)
    if wants_help and not asked:
        asked = rest
    options: Any
    options, overrides = tyro.cli(verb, args=asked, prog=f"epg {name}", return_unknown_args=True)
    if wants_help:
        from epg.cli.train import configure

        print(f"Flags of the recipe (those of the command: epg {name} --help)\n", flush=True)
        configure(options.recipe, options.chosen()[0], ["--help"])
    return options, overrides


def usage() -> str:
    """The list of commands."""
    lines = [f"  {name:<12}{(verb.__doc__ or '').splitlines()[0]}" for name, verb in VERBS.items()]
    return (
        "epg: train image generators directly on pixels, without a VAE.\n\n"
        "usage: epg COMMAND ...        epg COMMAND --help\n\n" + "\n".join(lines) + "\n\n"
        "Start with: epg quickstart"
    )
