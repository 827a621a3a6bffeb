"""`epg pretrain` and `epg finetune`: their options, and every field of the recipe as a flag."""

import copy
import dataclasses
import difflib
import functools
from collections.abc import Iterator, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, get_args

import tyro

from epg.cli.named import Existing, OutFolder, refuse_no_images, refuse_no_weights
from epg.cli.options import light_kind, plain
from epg.cli.paths import Place
from epg.cli.process import of_several
from epg.command_line import flag, of_sections, written
from epg.errors import UserError

if TYPE_CHECKING:
    from pydantic import BaseModel

    from epg.config.objectives import Stage
    from epg.config.settings import RunConfig

Overrides = Annotated[tuple[str, ...], tyro.conf.UseAppendAction]


@dataclass(frozen=True, kw_only=True)
class Training:
    """Options of both stages."""

    CONTINUES: ClassVar[bool] = True
    TAKES_OVERRIDES: ClassVar[bool] = True
    GENERATOR: ClassVar[bool]

    stage: str
    recipe: tyro.conf.Positional[Place]
    """Name of a recipe (`epg info` lists them), or the path of a .yaml file."""
    out: OutFolder | None = None
    """Run folder; runs/RECIPE/STAGE, or that of --resume, if not given."""
    resume: Existing | None = None
    """Continue from exactly this run folder (its newest checkpoint) or checkpoint; anything else is an error."""
    override: Overrides = ()
    """A setting that may differ from the run that is continued, such as optimizer.lr; repeat the flag for more."""

    def chosen(self) -> list[str]:
        """The stage of the recipe to speak of: the one asked for, or else what the verb could train."""
        from epg.config.objectives import KINDS
        from epg.config.recipe import stages_of

        fits = [stage for stage in stages_of(self.recipe) if KINDS[stage].samples == self.GENERATOR]
        return [self.stage] if self.stage in fits or not fits else fits

    def configured(self, overrides: list[str]) -> "RunConfig":
        """What is trained. Raises UserError for what is wrong with it, or images that are not there."""
        config = configure(self.recipe, self.stage, overrides)
        if not of_several():
            refuse_no_images(config.data.source, "--data.source ")
        return config


@dataclass(frozen=True, kw_only=True)
class Pretrain(Training):
    """Stage 1: pre-train an encoder on your images, without labels.

    Any field of the recipe is a flag too: `epg pretrain digits --training.steps 200`. Running the same command again
    continues an interrupted run.
    """

    GENERATOR: ClassVar[bool] = False

    stage: str = "pretraining"
    """What to train: pretraining, or another encoder that the recipe describes."""

    def __call__(self, overrides: list[str]) -> None:
        refuse_stage(self.stage, self.GENERATOR)
        config = self.configured(overrides)
        from epg.distributed import tells
        from epg.runs import train  # seconds, after what a wrong flag is told

        run = train(config, self.out, resume=self.resume, overrides=self.override)
        if tells():
            print(f"Pre-trained encoder: {run.folder}\nNext: {self.next(run.folder, overrides)}")

    def next(self, folder: Path, overrides: list[str]) -> str:
        """The command that fine-tunes this encoder, with the settings in which the run differs from its recipe."""
        from epg.config.objectives import KINDS
        from epg.config.recipe import stages_of

        generators = [stage for stage in stages_of(self.recipe) if KINDS[stage].samples]
        stage = [] if not generators or "diffusion" in generators else ["--stage", generators[0]]
        out = [] if self.out is None else ["--out", str(folder.parent / (stage or ["diffusion"])[-1])]
        return written("epg", "finetune", self.recipe, *stage, "--encoder", folder, *out, *of_sections(overrides))


@dataclass(frozen=True, kw_only=True)
class Finetune(Training):
    """Stage 2: train a generator, a diffusion or a one-step model.

    The encoder of stage 1 and a new decoder, end to end. Any field of the recipe is a flag too. Running the same
    command again continues an interrupted run.
    """

    GENERATOR: ClassVar[bool] = True

    stage: str = "diffusion"
    """What to train: diffusion, consistency, or what else the recipe describes."""
    encoder: Place | None = None
    """The pre-trained encoder: run folder, checkpoint, export, released weight file, user/repo on the Hub, or asset."""
    base: Annotated[Place | None, tyro.conf.arg(name="from")] = None
    """Start from this whole generator (run folder, checkpoint, export, pipeline folder, user/repo on the Hub, asset),
    also with other classes, image or patch size; its run says which pre-trained encoder it had, where a loss needs
    that."""
    from_scratch: bool = False
    """Start from a random encoder instead."""

    def __call__(self, overrides: list[str]) -> None:
        from epg.config.beginning import refuse_beginning
        from epg.storage import hub

        refuse_stage(self.stage, self.GENERATOR)
        refuse_beginning(self.recipe, self.stage, self.encoder, self.base, self.from_scratch, self.resume)
        config = self.configured(overrides)
        continues = self.resume is not None or ((self.out or config.folder) / "checkpoints").is_dir()
        if not continues and not of_several():  # a run that goes on has in its checkpoints what it began with
            for name, sign in ((self.encoder, "--encoder "), (self.base, "--from ")):
                if name is not None:
                    refuse_no_weights(name, sign)
        encoder = None if self.encoder is None else hub.local(self.encoder)
        base = None if self.base is None else hub.local(self.base)
        from epg.distributed import tells
        from epg.runs import train  # seconds, after what a wrong flag is told

        run = train(config, self.out, encoder=encoder, base=base, resume=self.resume, overrides=self.override)
        if tells():
            next_one = written("epg", "sample", run.folder, "--out", run.folder / "samples")
            print(f"Generator: {run.folder}\nNext: {next_one}")


def refuse_stage(stage: "Stage", generator: bool) -> None:
    """Raises UserError for what the verb does not train."""
    from epg.config.objectives import KINDS

    fits = [name for name, kind in KINDS.items() if kind.samples == generator]
    if stage not in fits:
        verb = f"; `epg {'pretrain' if generator else 'finetune'}` trains it" if stage in KINDS else ""
        raise UserError(f"--stage {stage}: choose one of {', '.join(fits)}{verb}")


def configure(recipe: str, stage: "Stage", overrides: list[str]) -> "RunConfig":
    """The recipe's configuration with every `--section.field value` of the command line laid over it.

    Raises UserError listing everything that is wrong with the whole.
    """
    from epg.config.recipe import locator, run_config
    from epg.config.settings import RunConfig
    from epg.config.validation import checked

    arguments = spell_out(overrides, set(switches(RunConfig)))
    blank = form(run_config(recipe, stage))
    given = {word.partition("=")[0] for word in arguments if word.startswith("--")}
    refuse_unknown(given)
    kind = tyro.conf.configure(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff)(type(blank))
    filled = tyro.cli(kind, default=blank, args=arguments, prog=f"epg ... {recipe}")
    in_file = locator(recipe, stage)

    def locate(keys: tuple[str, ...]) -> str:
        return "" if any(flag(keys) == flag((word[2:],)) for word in given) else in_file(keys)

    return checked(dataclasses.asdict(filled), f"recipe {recipe} with the flags", locate)


def form(config: "BaseModel") -> Any:
    """The settings of a configuration as a dataclass, which takes whatever is filled in: it is checked as a whole."""
    fields: list[tuple[str, Any, Any]] = []
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if hasattr(type(value), "model_fields"):
            inner = form(value)
            fields.append((name, type(inner), dataclasses.field(default=inner)))
        else:
            kind: Any = Annotated[light_kind(plain(field.annotation)), tyro.conf.arg(help=field.description)]
            fields.append((name, kind, dataclasses.field(default_factory=functools.partial(copy.copy, value))))
    return dataclasses.make_dataclass(type(config).__name__, fields, frozen=True)()


def refuse_unknown(given: Set[str]) -> None:
    """Raises UserError for flags that are no settings, with what was probably meant."""
    from epg.config.complaints import every_setting
    from epg.config.settings import RunConfig

    known = [flag(keys) for keys in every_setting(RunConfig)]
    own = ["--" + f.name.replace("_", "-") for verb in (Pretrain, Finetune) for f in dataclasses.fields(verb)]
    lines = []
    for name in sorted(given - {"--help"}):
        spelled = name.replace("_", "-")
        if spelled in known:
            continue
        same = [other for other in known if other.rpartition(".")[2] == spelled.rpartition(".")[2].removeprefix("--")]
        close = same or difflib.get_close_matches(name, [*known, *own], n=1)
        lines.append(f"{name}: no such setting" + (f"; did you mean {' or '.join(close[:3])}?" if close else ""))
    if lines:
        raise UserError("\n".join(lines))


def switches(model: "type[BaseModel]", prefix: str = "--") -> Iterator[str]:
    """The flags of a configuration that are true or false, such as `--training.compile`."""
    from epg.config.complaints import models_in

    for name, field in model.model_fields.items():
        flag = prefix + name.replace("_", "-")
        if bool in (field.annotation, *get_args(field.annotation)):
            yield flag
        for inner in models_in(field):
            yield from switches(inner, f"{flag}.")


def spell_out(arguments: list[str], flags: set[str]) -> list[str]:
    """A switch alone means True, and its value may be written in any case."""
    spelled: list[str] = []
    for i, argument in enumerate(arguments):
        after = arguments[i + 1].capitalize() if i + 1 < len(arguments) else ""
        before = spelled[-1] if spelled else ""
        spelled.append(argument.capitalize() if before.replace("_", "-") in flags else argument)
        if argument.replace("_", "-") in flags and after not in ("True", "False"):
            spelled.append("True")
    return spelled
