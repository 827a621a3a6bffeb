"""The verbs, and from a command line to one of them. Heavy modules are imported by the verb that needs them."""

import difflib
import re
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import tyro

from epg import signals
from epg.cli.compare import Compare
from epg.cli.convert import Convert
from epg.cli.data import Inspect, Prepare
from epg.cli.evaluate import Evaluate, MakeReference
from epg.cli.numbers import in_range
from epg.cli.paths import usable
from epg.cli.probe import Denoising, Neighbours, Probe
from epg.cli.quickstart import Quickstart
from epg.cli.sample import Sample
from epg.cli.sweep import Sweep
from epg.cli.tools import Ema, Info, Verify
from epg.cli.train import Finetune, Pretrain, configure
from epg.errors import InterruptedRunError, UserError, shortened

__all__ = ["VERBS", "configure", "parse", "run"]

# Each verb is a dataclass of its options, and calling it does what it says.
VERBS: dict[str, type] = {
    "quickstart": Quickstart,
    "prepare": Prepare,
    "inspect": Inspect,
    "pretrain": Pretrain,
    "finetune": Finetune,
    "sample": Sample,
    "evaluate": Evaluate,
    "reference": MakeReference,
    "compare": Compare,
    "sweep": Sweep,
    "neighbours": Neighbours,
    "denoising": Denoising,
    "probe": Probe,
    "convert": Convert,
    "verify": Verify,
    "ema": Ema,
    "info": Info,
}
TAKES_OVERRIDES = (Pretrain, Finetune)


def run(arguments: list[str]) -> None:
    """Does what a command line says."""
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:2], "--help"]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
    elif arguments[0] == "--version":
        print(version("epg"))
    else:
        verb, overrides = parse(arguments)
        try:
            verb(overrides) if isinstance(verb, TAKES_OVERRIDES) else verb()
        except (Exception, KeyboardInterrupt) as error:
            number = signals.answered()
            if not number or not getattr(verb, "CONTINUES", False) or isinstance(error, InterruptedRunError):
                raise
            text = f"stopped by {signals.name_of(number)}; the same command continues"
            raise InterruptedRunError(text) from error


def parse(arguments: list[str]) -> tuple[Any, list[str]]:
    """The verb with its options, ready to be called, and the flags left for the recipe."""
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
    if VERBS[name] in TAKES_OVERRIDES:
        verb, overrides = parse_with_overrides(name, rest)
        return in_range(usable(verb)), overrides
    return in_range(usable(tyro.cli(VERBS[name], args=rest, prog=f"epg {name}"))), []


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


def parse_with_overrides(verb: str, rest: list[str]) -> tuple[Any, list[str]]:
    """The verb's own options, and the rest for the recipe's fields. `--help` after a recipe lists those."""
    asked = [argument for argument in rest if argument not in ("-h", "--help")]
    wants_help = len(asked) < len(rest)
    if wants_help and not asked:
        asked = rest
    options: Any
    options, overrides = tyro.cli(VERBS[verb], args=asked, prog=f"epg {verb}", return_unknown_args=True)
    if wants_help:
        from epg.config.objectives import KINDS
        from epg.config.recipe import stages_of

        print(f"Flags of the recipe (those of the command: epg {verb} --help)\n", flush=True)
        stages = [stage for stage in stages_of(options.recipe) if KINDS[stage].samples == (verb == "finetune")]
        configure(options.recipe, options.stage if options.stage in stages or not stages else stages[0], ["--help"])
    return options, overrides


def usage() -> str:
    """The list of commands."""
    lines = [f"  {name:<12}{(verb.__doc__ or '').splitlines()[0]}" for name, verb in VERBS.items()]
    return (
        "epg: train image generators directly on pixels, without a VAE.\n\n"
        "usage: epg COMMAND ...        epg COMMAND --help\n\n" + "\n".join(lines) + "\n\n"
        "Start with: epg quickstart"
    )
