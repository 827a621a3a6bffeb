"""`epg pretrain` and `epg finetune`: their options, and every field of the recipe as a flag."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, get_args

import tyro

from epg.cli.paths import Place
from epg.errors import UserError

if TYPE_CHECKING:
    from pydantic import BaseModel

    from epg.config import RunConfig, Stage

Overrides = Annotated[tuple[str, ...], tyro.conf.UseAppendAction]


@dataclass(frozen=True)
class Pretrain:
    """Stage 1: pre-train a ViT encoder on your images by self-supervision.

    Any field of the recipe is a flag too: `epg pretrain digits --training.steps 200`. Running the same command again
    continues an interrupted run.
    """

    CONTINUES: ClassVar[bool] = True

    recipe: tyro.conf.Positional[Place]
    """Name of a recipe (`epg info` lists them), or the path of a .yaml file."""
    out: Path | None = None
    """Run folder; runs/RECIPE/pretraining, or that of --resume, if not given."""
    resume: Path | None = None
    """Continue from exactly this run folder (its newest checkpoint) or checkpoint; anything else is an error."""
    override: Overrides = ()
    """A setting that may differ from the run that is continued, such as optimizer.lr; repeat the flag for more."""

    def __call__(self, overrides: list[str]) -> None:
        from epg.runs import train

        config = configure(self.recipe, "pretraining", overrides)
        run = train(config, self.out, resume=self.resume, overrides=self.override)
        print(f"Pre-trained encoder: {run.folder}\nNext: epg finetune {self.recipe} --encoder {run.folder}")


@dataclass(frozen=True)
class Finetune:
    """Stage 2: encoder and a new decoder end to end, as a diffusion or a one-step consistency model.

    Any field of the recipe is a flag too. Running the same command again continues an interrupted run.
    """

    CONTINUES: ClassVar[bool] = True

    recipe: tyro.conf.Positional[Place]
    """Name of a recipe, or the path of a .yaml file."""
    stage: Literal["diffusion", "consistency"] = "diffusion"
    """What to train."""
    encoder: Path | None = None
    """Run folder (or checkpoint, export, released weight file, or user/repo on the Hub) of the pre-trained encoder."""
    from_scratch: bool = False
    """Start from a random encoder instead."""
    out: Path | None = None
    """Run folder; runs/RECIPE/STAGE, or that of --resume, if not given."""
    resume: Path | None = None
    """Continue from exactly this run folder (its newest checkpoint) or checkpoint; anything else is an error."""
    override: Overrides = ()
    """A setting that may differ from the run that is continued, such as optimizer.lr; repeat the flag for more."""

    def __call__(self, overrides: list[str]) -> None:
        from epg import hub
        from epg.runs import train

        if self.encoder is None and not self.from_scratch and self.resume is None:
            raise UserError(
                "--encoder: which pre-trained encoder? Pass the run folder of `epg pretrain` (runs/"
                f"{Path(self.recipe).stem}/pretraining by default), or --from-scratch."
            )
        if self.encoder is not None and self.from_scratch:
            raise UserError("--encoder and --from-scratch: choose one")
        config = configure(self.recipe, self.stage, overrides)
        encoder = None if self.encoder is None else hub.local(self.encoder)
        run = train(config, self.out, encoder=encoder, resume=self.resume, overrides=self.override)
        print(f"Generator: {run.folder}\nNext: epg sample {run.folder}")


def configure(recipe: str, stage: "Stage", overrides: list[str]) -> "RunConfig":
    """The recipe's configuration with every `--section.field value` of the command line laid over it."""
    from epg.config import RunConfig
    from epg.recipe import locator, run_config
    from epg.validation import check

    base = run_config(recipe, stage)
    flags = tyro.conf.configure(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff)(RunConfig)
    arguments = spell_out(overrides, set(switches(RunConfig)))
    config = tyro.cli(flags, default=base, args=arguments, prog=f"epg ... {recipe}")
    return check(config, locator(recipe, stage))


def switches(model: "type[BaseModel]", prefix: str = "--") -> Iterator[str]:
    """The flags of a configuration that are true or false, such as `--training.compile`."""
    for name, field in model.model_fields.items():
        flag = prefix + name.replace("_", "-")
        for kind in (field.annotation, *get_args(field.annotation)):
            if kind is bool:
                yield flag
            elif hasattr(kind, "model_fields"):
                yield from switches(kind, f"{flag}.")


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
