"""The options of every verb: the docstrings are the help."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro


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
    """Run folder (or checkpoint, export, or released weight file) of the pre-trained encoder."""
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
