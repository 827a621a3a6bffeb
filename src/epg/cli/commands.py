"""What every verb does: thin layers over the library, which is imported only by the verb that needs it."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from epg.cli import options as o
from epg.errors import UserError

if TYPE_CHECKING:
    from epg.config import RunConfig, Stage


def prepare(options: o.Prepare, overrides: list[str]) -> None:
    from epg.data.commands import run_prepare
    from epg.data.encode import PixelOptions
    from epg.data.sources.base import SourceOptions

    run_prepare(
        options.source,
        options.out,
        PixelOptions(options.image_size, options.channels, options.format, options.resize_only, options.background),
        SourceOptions(options.split, options.labels, options.image_column, options.label_column),
        on_error=options.on_error,
        workers=options.workers,
        shard=options.shard,
        parquet=options.parquet,
    )
    print(f"Next: epg inspect {options.out}; or epg pretrain RECIPE --data.source {options.out}")


def inspect(options: o.Inspect, overrides: list[str]) -> None:
    from epg.data.commands import run_inspect
    from epg.data.encode import PixelOptions
    from epg.data.sources.base import SourceOptions

    run_inspect(
        options.dataset,
        PixelOptions(options.image_size),
        SourceOptions(options.split, options.labels, options.image_column, options.label_column),
        sheet=options.sheet,
        report=options.report,
        verify=options.verify,
        workers=options.workers,
    )


def pretrain(options: o.Pretrain, overrides: list[str]) -> None:
    from epg.runs import train

    config = configure(options.recipe, "pretraining", overrides)
    run = train(config, options.out or default_folder(config))
    print(f"Pre-trained encoder: {run.folder}\nNext: epg finetune {options.recipe} --encoder {run.folder}")


def finetune(options: o.Finetune, overrides: list[str]) -> None:
    from epg.runs import train

    if options.encoder is None and not options.from_scratch:
        raise UserError(
            "--encoder: which pre-trained encoder? Pass the run folder of `epg pretrain` (runs/"
            f"{Path(options.recipe).stem}/pretraining by default), or --from-scratch."
        )
    if options.encoder is not None and options.from_scratch:
        raise UserError("--encoder and --from-scratch: choose one")
    config = configure(options.recipe, options.stage, overrides)
    run = train(config, options.out or default_folder(config), encoder=options.encoder)
    print(f"Generator: {run.folder}\nNext: epg sample {run.folder}")


def sample(options: o.Sample, overrides: list[str]) -> None:
    from epg.sampling import write_samples

    write_samples(
        options.checkpoint,
        options.out,
        count=options.count,
        classes=options.classes,
        random_labels=options.random_labels,
        seed=options.seed,
        changes={
            name: value
            for name in ("sampler", "steps", "guidance", "interval")
            if (value := getattr(options, name)) is not None
        },
        guide=options.guide,
        ema=options.ema,
        batch_size=options.batch_size,
        device=options.device,
        npz=options.npz,
    )


def evaluate(options: o.Evaluate, overrides: list[str]) -> None:
    from epg.evaluation.evaluate import evaluate_checkpoint

    evaluate_checkpoint(
        options.checkpoint,
        count=options.count,
        seed=options.seed,
        batch_size=options.batch_size,
        out=options.out,
        device=options.device,
    )


def verify(options: o.Verify, overrides: list[str]) -> None:
    from epg.training.verify import verify as verify_run

    verify_run(options.run)


def ema(options: o.Ema, overrides: list[str]) -> None:
    from epg.training.synthesis import synthesise

    snapshots = synthesise(options.run, options.sigma_rel, options.out)
    print(f"{options.out}: width {options.sigma_rel} from {len(snapshots)} snapshots")


def info(options: o.Info, overrides: list[str]) -> None:
    from epg.info import list_recipes, print_info

    if options.recipe is None:
        list_recipes()
    else:
        print_info(options.recipe)


def quickstart(options: o.Quickstart, overrides: list[str]) -> None:
    from epg.quickstart import run_quickstart

    run_quickstart(
        options.data,
        minutes=options.minutes,
        out=options.out,
        image_size=options.image_size,
        seed=options.seed,
    )


VERBS: dict[str, tuple[type, Callable[[Any, list[str]], None]]] = {
    "quickstart": (o.Quickstart, quickstart),
    "prepare": (o.Prepare, prepare),
    "inspect": (o.Inspect, inspect),
    "pretrain": (o.Pretrain, pretrain),
    "finetune": (o.Finetune, finetune),
    "sample": (o.Sample, sample),
    "evaluate": (o.Evaluate, evaluate),
    "verify": (o.Verify, verify),
    "ema": (o.Ema, ema),
    "info": (o.Info, info),
}
TAKES_OVERRIDES = ("pretrain", "finetune")


def configure(recipe: str, stage: "Stage", overrides: list[str]) -> "RunConfig":
    """The recipe's configuration with every `--section.field value` of the command line laid over it."""
    from epg.config import RunConfig
    from epg.recipe import run_config
    from epg.validation import check

    base = run_config(recipe, stage)
    flags = tyro.conf.configure(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff)(RunConfig)
    return check(tyro.cli(flags, default=base, args=overrides, prog=f"epg ... {recipe}"))


def default_folder(config: "RunConfig") -> Path:
    return Path("runs") / config.recipe / config.stage
