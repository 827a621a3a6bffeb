"""The command line: `epg VERB ...`. Every verb is a thin layer over the library.

Heavy modules are imported where a verb needs them, so that `epg --help` answers at once.
"""

import difflib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from epg.errors import UserError


@dataclass(frozen=True)
class Prepare:
    """Any images (folders, archives, parquet, Hub, s3://) into one checked, fast set of equal size.

    Running the same command again continues an interrupted preparation; a finished one is left alone.
    """

    source: tyro.conf.Positional[str]
    """A folder, a zip or tar archive, a parquet or Arrow file, a Hub name, or an s3://, gs:// or hf:// address."""
    out: tyro.conf.Positional[Path]
    """Folder for the prepared set; give it to training as --data.source."""
    image_size: int
    """Side in pixels: halved with a box filter, scaled bicubically and centre-cropped, as ADM does."""
    resize_only: bool = False
    """Scale the short side to --image-size and keep the rest, instead of cropping."""
    channels: int = 3
    """1 (grey) or 3 (colour)."""
    format: Literal["png", "webp", "raw"] = "png"
    """How pixels are stored, losslessly; JPEG files of the right size stay as they are (except with raw)."""
    background: str = "white"
    """Colour behind transparent pixels: a name or #rrggbb."""
    split: str = "train"
    """Which split of the source: train, test, validation or val."""
    labels: Literal["auto", "folder", "column", "none"] = "auto"
    """Where labels come from; auto finds out."""
    image_column: str | None = None
    """Column of a table that holds the images; found by itself when there is one."""
    label_column: str | None = None
    """Column of a table or metadata file that holds the labels; found by itself when there is one."""
    on_error: Literal["skip", "fail"] = "skip"
    """Images that cannot be used: leave them out, or end with an error. Either way report.jsonl lists them."""
    workers: int | None = None
    """Processes; one per core if not given."""
    shard: str = "1/1"
    """I/N: do the I-th of N parts; N machines share the folder."""
    parquet: Path | None = None
    """Also write the set as parquet files for the Hub into this folder."""


@dataclass(frozen=True)
class Inspect:
    """What is in a set: counts, sizes, balance, duplicates, mean and std, and a contact sheet."""

    dataset: tyro.conf.Positional[str]
    """A prepared set, or anything that `epg prepare` takes."""
    sheet: Path = Path("contact-sheet.png")
    """PNG file for a selection of images."""
    report: Path | None = None
    """JSON file for everything found, with all duplicates."""
    verify: bool = False
    """Compare every byte of a prepared set with its checksums first."""
    image_size: int = 64
    """For sources that are not prepared: the size at which mean, std and duplicates are computed."""
    split: str = "train"
    labels: Literal["auto", "folder", "column", "none"] = "auto"
    image_column: str | None = None
    label_column: str | None = None
    workers: int | None = None
    """Processes; one per core if not given."""


@dataclass(frozen=True)
class Pretrain:
    """Stage 1: pre-train a ViT encoder on your images by self-supervision.

    Any field of the recipe is a flag too: `epg pretrain digits --training.steps 200`. Running the same command again
    continues an interrupted run.
    """

    recipe: tyro.conf.Positional[str]
    """Name of a recipe (`epg info` lists them), or the path of a .yaml file."""
    out: Path | None = None
    """Run folder; runs/RECIPE/pretraining if not given."""


@dataclass(frozen=True)
class Finetune:
    """Stage 2: encoder and a new decoder end to end, as a diffusion or a one-step consistency model.

    Any field of the recipe is a flag too. Running the same command again continues an interrupted run.
    """

    recipe: tyro.conf.Positional[str]
    """Name of a recipe, or the path of a .yaml file."""
    stage: Literal["diffusion", "consistency"] = "diffusion"
    """What to train."""
    encoder: Path | None = None
    """Run folder (or checkpoint, or released weight file) of the pre-trained encoder."""
    from_scratch: bool = False
    """Start from a random encoder instead."""
    out: Path | None = None
    """Run folder; runs/RECIPE/STAGE if not given."""


@dataclass(frozen=True)
class Sample:
    """Draw images from a trained generator: PNG files, a grid, and optionally an ADM .npz."""

    checkpoint: tyro.conf.Positional[Path]
    """Run folder or checkpoint."""
    out: Path = Path("samples")
    """Folder for the images."""
    count: int = 64
    """Number of images."""
    classes: tuple[str, ...] = ()
    """Class names or numbers to draw; all classes in turn if not given."""
    random_labels: bool = False
    """Draw labels at random instead of in turn."""
    seed: int = 0
    """Image i depends on the seed and i alone."""
    sampler: Literal["heun", "euler", "edm_stochastic", "euler_ancestral", "one_step", "multistep"] | None = None
    """The recipe's if not given."""
    steps: int | None = None
    """Levels of the sampling grid."""
    guidance: float | None = None
    """Scale of guidance; 1 is none."""
    interval: tuple[float, float] | None = None
    """Unshifted noise levels (low, high] in which guidance acts."""
    guide: Path | None = None
    """A weaker checkpoint: autoguidance instead of classifier-free guidance."""
    ema: float | None = None
    """Which EMA decay to load; the first if not given."""
    batch_size: int = 64
    device: str = "auto"
    npz: bool = False
    """Also write samples.npz (arr_0 uint8 NHWC, arr_1 labels)."""


@dataclass(frozen=True)
class Evaluate:
    """Judge samples with a classifier trained on the run's own labelled images (no download; not an FID)."""

    checkpoint: tyro.conf.Positional[Path]
    """Run folder or checkpoint."""
    count: int = 1000
    """Number of samples."""
    seed: int = 0
    batch_size: int = 250
    out: Path | None = None
    """JSON file for the numbers; evaluation.json in the run folder if not given."""
    device: str = "auto"


@dataclass(frozen=True)
class Verify:
    """Read every checkpoint and the export of a run to the last byte; exit code 77 if anything is damaged."""

    run: tyro.conf.Positional[Path]
    """Run folder, or one checkpoint or export."""


@dataclass(frozen=True)
class Ema:
    """Make the weight average of another width after training, from the power-function averages of a run."""

    run: tyro.conf.Positional[Path]
    """Run folder, trained with --training.power-ema."""
    sigma_rel: float
    """Width relative to the training's length, for example 0.08."""
    out: Path
    """Folder for the weights; `epg sample` takes it."""


@dataclass(frozen=True)
class Info:
    """Size and cost of a recipe: parameters, GFLOPs, tokens, NFE. Without a recipe, list them."""

    recipe: tyro.conf.Positional[str | None] = None


@dataclass(frozen=True)
class Quickstart:
    """Everything on a small budget: pre-train, fine-tune twice, sample, evaluate, compare with training from scratch.

    On scikit-learn's digits, or on a folder of yours. Ends with a page to open in a browser.
    """

    data: str = "digits"
    """`digits`, a folder of images (class folders or flat), or a parquet file."""
    minutes: float = 10.0
    """Time for everything; longer is better."""
    out: Path | None = None
    """Folder for runs and page; runs/quickstart-NAME if not given."""
    image_size: int | None = None
    """Side in pixels; 8 for digits, 32 otherwise."""
    seed: int = 0


def prepare(options: Prepare, overrides: list[str]) -> None:
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


def inspect(options: Inspect, overrides: list[str]) -> None:
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


def pretrain(options: Pretrain, overrides: list[str]) -> None:
    from epg.runs import train

    config = configure(options.recipe, "pretraining", overrides)
    run = train(config, options.out or default_folder(config))
    print(f"Pre-trained encoder: {run.folder}\nNext: epg finetune {options.recipe} --encoder {run.folder}")


def finetune(options: Finetune, overrides: list[str]) -> None:
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


def sample(options: Sample, overrides: list[str]) -> None:
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


def evaluate(options: Evaluate, overrides: list[str]) -> None:
    from epg.evaluation.evaluate import evaluate_checkpoint

    evaluate_checkpoint(
        options.checkpoint,
        count=options.count,
        seed=options.seed,
        batch_size=options.batch_size,
        out=options.out,
        device=options.device,
    )


def verify(options: Verify, overrides: list[str]) -> None:
    from epg.training.verify import verify as verify_run

    verify_run(options.run)


def ema(options: Ema, overrides: list[str]) -> None:
    from epg.training.synthesis import synthesise

    snapshots = synthesise(options.run, options.sigma_rel, options.out)
    print(f"{options.out}: width {options.sigma_rel} from {len(snapshots)} snapshots")


def info(options: Info, overrides: list[str]) -> None:
    from epg.info import list_recipes, print_info

    if options.recipe is None:
        list_recipes()
    else:
        print_info(options.recipe)


def quickstart(options: Quickstart, overrides: list[str]) -> None:
    from epg.quickstart import run_quickstart

    run_quickstart(
        options.data,
        minutes=options.minutes,
        out=options.out,
        image_size=options.image_size,
        seed=options.seed,
    )


VERBS: dict[str, tuple[type, Callable[[Any, list[str]], None]]] = {
    "quickstart": (Quickstart, quickstart),
    "prepare": (Prepare, prepare),
    "inspect": (Inspect, inspect),
    "pretrain": (Pretrain, pretrain),
    "finetune": (Finetune, finetune),
    "sample": (Sample, sample),
    "evaluate": (Evaluate, evaluate),
    "verify": (Verify, verify),
    "ema": (Ema, ema),
    "info": (Info, info),
}
TAKES_OVERRIDES = ("pretrain", "finetune")


def configure(recipe: str, stage: Literal["pretraining", "diffusion", "consistency"], overrides: list[str]) -> Any:
    """The recipe's configuration with every `--section.field value` of the command line laid over it."""
    from epg.config import RunConfig, check, run_config

    base = run_config(recipe, stage)
    flags = tyro.conf.configure(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff)(RunConfig)
    return check(tyro.cli(flags, default=base, args=overrides, prog=f"epg ... {recipe}"))


def default_folder(config: Any) -> Path:
    return Path("runs") / config.recipe / config.stage


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `epg`; returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(version("epg"))
        return 0
    try:
        function, options, overrides = parse(arguments)
        function(options, overrides)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def parse(arguments: list[str]) -> tuple[Callable[[Any, list[str]], None], Any, list[str]]:
    """What to call for a command line: the verb's function, its options, and the flags left for the recipe."""
    verb, rest = arguments[0], arguments[1:]
    if verb not in VERBS:
        close = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"; did you mean {close[0]}?" if close else "."
        raise UserError(f"{verb!r} is no command{hint} Commands: {', '.join(VERBS)}")
    options_type, function = VERBS[verb]
    if verb not in TAKES_OVERRIDES:
        return function, tyro.cli(options_type, args=rest, prog=f"epg {verb}"), []
    options, overrides = parse_with_overrides(verb, options_type, rest)
    return function, options, overrides


def parse_with_overrides(verb: str, options_type: type, rest: list[str]) -> tuple[Any, list[str]]:
    """The verb's own options, and the rest for the recipe's fields."""
    wants_help = bool({"-h", "--help"} & set(rest))
    recipe = next((argument for argument in rest if not argument.startswith("-")), None)
    if wants_help and recipe is not None:
        print(f"Flags of the recipe (those of the command: epg {verb} --help)\n")
        from epg.config import stages_of

        stage = "pretraining" if verb == "pretrain" else next(s for s in stages_of(recipe) if s != "pretraining")
        if "--stage" in rest:
            stage = rest[rest.index("--stage") + 1]  # type: ignore[assignment]
        configure(recipe, stage, ["--help"])
    options: Any
    options, unknown = tyro.cli(options_type, args=rest, prog=f"epg {verb}", return_unknown_args=True)
    return options, unknown


def usage() -> str:
    """The list of commands."""
    lines = [f"  {name:<12}{(options.__doc__ or '').splitlines()[0]}" for name, (options, _) in VERBS.items()]
    return (
        "epg: train image generators directly on pixels, without a VAE.\n\n"
        "usage: epg COMMAND ...        epg COMMAND --help\n\n" + "\n".join(lines) + "\n\n"
        "Start with: epg quickstart"
    )


if __name__ == "__main__":
    sys.exit(main())
