"""The command line: `epg VERB ...`. Heavy modules are imported by the verb that needs them, so `--help` is fast."""

import difflib
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from itertools import pairwise
from typing import Any

import tyro

from epg.cli.compare import Compare
from epg.cli.convert import Convert
from epg.cli.data import Inspect, Prepare
from epg.cli.evaluate import Evaluate, MakeReference
from epg.cli.probe import Denoising, Neighbours, Probe
from epg.cli.quickstart import Quickstart
from epg.cli.sample import Sample
from epg.cli.sweep import Sweep
from epg.cli.tools import Ema, Info, Verify
from epg.cli.train import Finetune, Pretrain, configure
from epg.errors import UserError

__all__ = ["VERBS", "configure", "entry", "main", "parse"]

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


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `epg`; returns the exit code."""
    try:
        run(list(sys.argv[1:] if arguments is None else arguments))
        return 0
    except UserError as error:
        try:
            print(f"error: {error}", file=sys.stderr, flush=True)
        except OSError:  # the terminal has gone, and the run was stopped by that
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
        return error.exit_code
    except BrokenPipeError:  # the reader of our output has gone, as in `epg info | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def entry() -> int:
    """`main` for a process of its own. One of several ends at once, after everything is closed and written: threads of
    the process group that outlive the interpreter's shutdown would otherwise abort a run that succeeded."""
    code = main()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def run(arguments: list[str]) -> None:
    """Does what a command line says."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
    elif arguments[0] == "--version":
        print(version("epg"))
    else:
        verb, overrides = parse(arguments)
        verb(overrides) if isinstance(verb, TAKES_OVERRIDES) else verb()


def parse(arguments: list[str]) -> tuple[Any, list[str]]:
    """The verb with its options, ready to be called, and the flags left for the recipe."""
    name, rest = arguments[0], arguments[1:]
    if broken := [f"{before} {a!r}" for before, a in pairwise(arguments) if "\0" in a]:
        raise UserError(f"{broken[0][:200]}: holds a NUL character")
    if name not in VERBS:
        close = difflib.get_close_matches(name, VERBS, n=1)
        hint = f"; did you mean {close[0]}?" if close else "."
        raise UserError(f"{name!r} is no command{hint} Commands: {', '.join(VERBS)}")
    if VERBS[name] in TAKES_OVERRIDES:
        return parse_with_overrides(name, rest)
    return tyro.cli(VERBS[name], args=rest, prog=f"epg {name}"), []


def parse_with_overrides(verb: str, rest: list[str]) -> tuple[Any, list[str]]:
    """The verb's own options, and the rest for the recipe's fields."""
    wants_help = bool({"-h", "--help"} & set(rest))
    recipe = next((argument for argument in rest if not argument.startswith("-")), None)
    if wants_help and recipe is not None:
        print(f"Flags of the recipe (those of the command: epg {verb} --help)\n")
        from epg.recipe import stages_of

        stage = "pretraining" if verb == "pretrain" else next(s for s in stages_of(recipe) if s != "pretraining")
        if "--stage" in rest:
            stage = rest[rest.index("--stage") + 1]  # type: ignore[assignment]
        configure(recipe, stage, ["--help"])
    options: Any
    options, unknown = tyro.cli(VERBS[verb], args=rest, prog=f"epg {verb}", return_unknown_args=True)
    return options, unknown


def usage() -> str:
    """The list of commands."""
    lines = [f"  {name:<12}{(verb.__doc__ or '').splitlines()[0]}" for name, verb in VERBS.items()]
    return (
        "epg: train image generators directly on pixels, without a VAE.\n\n"
        "usage: epg COMMAND ...        epg COMMAND --help\n\n" + "\n".join(lines) + "\n\n"
        "Start with: epg quickstart"
    )
