"""`epg prepare` and `epg inspect`: options (the docstrings are the help) and what they do."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import tyro

from epg.cli.named import Out, OutFolder
from epg.cli.numbers import Side, Workers
from epg.cli.paths import Place
from epg.command_line import written

if TYPE_CHECKING:
    from epg.data.sources.base import SourceOptions


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a source is read; verbs add their own."""

    RARE: ClassVar[frozenset[str]] = frozenset({"image_column", "label_column", "label_file", "range"})

    background: str = "white"
    """Colour behind transparent pixels: a name or #rrggbb; none ignores transparency (a fourth band of other data)."""
    range: tuple[float, float] | None = None
    """LOW HIGH: which values of more than 8 bits are black and white, such as 0 4095; by default all of the format."""
    split: str = "train"
    """Which split of the source: train, test, validation or val."""
    labels: Literal["auto", "folder", "column", "none"] = "auto"
    """Where labels come from; auto finds out."""
    image_column: str | None = None
    """Column of a table (array of an .npz, member of a WebDataset sample) that holds the images; found by itself."""
    label_column: str | None = None
    """Column of a table or label file (array of an .npz) that holds the labels; found by itself."""
    label_file: str | None = None
    """File within the source that names images and labels, such as labels.csv; metadata.csv is found by itself."""
    workers: Workers | None = None
    """Processes; one per core if not given."""

    def source_options(self) -> "SourceOptions":
        from epg.data.sources.base import SourceOptions

        return SourceOptions(self.split, self.labels, self.image_column, self.label_column, self.label_file)


@dataclass(frozen=True)
class Prepare(Reading):
    """Make one checked, fast set of any images: folders, archives, Hub.

    Running the same command again continues an interrupted preparation; a finished one is left alone.
    """

    RARE: ClassVar[frozenset[str]] = frozenset({"format", "on_error", "parquet", "resize", "shard"})

    CONTINUES: ClassVar[bool] = True

    source: tyro.conf.Positional[Place]
    """A folder, a zip or tar archive or a folder of them, parquet or Arrow files, .npz or .npy, a Hub name, or an s3://,
    gs:// or hf:// address."""
    out: tyro.conf.Positional[Path]
    """Folder for the prepared set; give it to training as --data.source."""
    image_size: Side
    """Side in pixels: halved with a box filter, scaled bicubically and centre-cropped, as ADM does."""
    resize_only: bool = False
    """Scale the short side to --image-size and keep the rest, instead of cropping."""
    channels: int = 3
    """1 (grey) or 3 (colour)."""
    format: Literal["png", "webp", "raw"] = "png"
    """How pixels are stored, losslessly; JPEG files of the right size stay as they are (except with raw)."""
    resize: Literal["adm", "exact"] = "adm"
    """adm rounds after every halving, as ADM, which brightens a little; exact rounds once."""
    on_error: Literal["skip", "fail"] = "skip"
    """Images that cannot be used: leave them out, or end with an error. Either way report.jsonl lists them."""
    shard: str = "1/1"
    """I/N: do the I-th of N parts; N machines share the folder."""
    parquet: OutFolder | None = None
    """Also write the set as parquet files for the Hub into this folder."""

    def __call__(self) -> None:
        from epg.data.prepared.commands import run_prepare
        from epg.data.prepared.encode import PixelOptions

        run_prepare(
            self.source,
            self.out,
            PixelOptions(
                self.image_size,
                self.channels,
                self.format,
                self.resize_only,
                background=self.background,
                range=self.range,
                resize=self.resize,
            ),
            self.source_options(),
            on_error=self.on_error,
            workers=self.workers,
            shard=self.shard,
            parquet=self.parquet,
        )
        print(f"Next: {written('epg', 'inspect', self.out)}\nIt is trained on with --data.source {written(self.out)}")


@dataclass(frozen=True)
class Inspect(Reading):
    """Look at a set: counts, sizes, balance, duplicates, contact sheet."""

    dataset: tyro.conf.Positional[Place]
    """A prepared set, or anything that `epg prepare` takes."""
    sheet: Out = Path("contact-sheet.png")
    """PNG file for a selection of images."""
    report: Out | None = None
    """JSON file for everything found, with all duplicates."""
    verify: bool = False
    """Compare every byte of a prepared set with its checksums first."""
    image_size: Side = 64
    """For sources that are not prepared: the size at which mean, std and duplicates are computed."""

    def __call__(self) -> None:
        from epg.data.prepared.commands import run_inspect
        from epg.data.prepared.encode import PixelOptions

        found = run_inspect(
            self.dataset,
            PixelOptions(self.image_size, background=self.background, range=self.range),
            self.source_options(),
            sheet=self.sheet,
            report=self.report,
            verify=self.verify,
            workers=self.workers,
        )
        if found.kind.startswith("prepared"):
            source = ("--data.source", self.dataset, "--data.image-size", str(found.manifest["pixels"]["image_size"]))
            out = Path("runs") / Path(self.dataset).name / "pretraining"
            print(f"Next: {written('epg', 'pretrain', 'small', *source, '--out', out)}")
