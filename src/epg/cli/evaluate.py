"""`epg evaluate` and `epg reference`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from epg.cli.drawing import Drawing
from epg.cli.numbers import BatchSize, Compared, Images, Seed, Side
from epg.cli.paths import Place
from epg.evaluation.measures import METRICS, help_text, known

Background = str | None
Range = tuple[float, float] | None
Resize = Literal["adm", "exact"] | None
Metrics = Annotated[tuple[str, ...], tyro.conf.arg(metavar=f"{{{','.join(METRICS)}}}")]


@dataclass(frozen=True)
class Evaluate(Drawing):
    """Judge samples against real images; writes a receipt (JSON) and prints a table.

    Without --reference, a run is compared with its own training images by a classifier trained on their labels: no
    download, and not an FID. For FID, sFID, IS, precision and recall as papers report them: --features inception
    --reference VIRTUAL_imagenet256_labeled.npz --count 50000. Processes of torchrun share the work.
    """

    samples: tyro.conf.Positional[Place]
    """Run folder, checkpoint, export, pipeline or Hub name (sampled here, nothing touches the disk); an .npz of ADM's
    layout; a folder of images; or a data set."""
    reference: Place | None = None
    """A data set, a folder made by `epg reference`, or an .npz of ADM's; a run's own training images if not given."""
    metrics: Annotated[Metrics, tyro.conf.arg(help=f"The usual ones of --features if not given.{help_text()}")] = ()
    features: tuple[str, ...] = ()
    """inception, efficientnet (extra eval-offline), classifier (trained on the labelled reference), encoder=RUN,
    dinov2, clip (both also with =FOLDER);
    what needs no download if not given."""
    inception: Path | None = None
    """File with Inception's weights, instead of the cache (EPG_CACHE) or a download."""
    count: Compared | None = None
    """Number of samples; 1000 of a generator and all otherwise if not given. Papers use 50000."""
    out: Path | None = None
    """JSON file for the receipt; evaluation.json in the folder of the samples, or here, if not given."""
    image_size: Side | None = None
    """Of samples that are a data set which is not prepared."""
    samples_split: str | None = None
    """Of samples that are a data set: test, or the only split of a prepared set, if not given."""
    split: str | None = None
    """Of a data set as reference: train, or the only split of a prepared set, if not given."""
    kept: Images = 10_000
    """Images of a data set as reference that precision, recall, density, coverage and KID use."""
    background: Background = None
    """Of a reference that is not prepared, as range and resize: see `epg prepare`. As in training if not given."""
    range: Range = None
    resize: Resize = None
    cache: bool = True
    """Keep statistics of the reference in the cache (EPG_CACHE)."""

    def __call__(self) -> None:
        from epg.evaluation.command import run_evaluate
        from epg.evaluation.jury import Options

        names = ("features", "inception", "image_size", "split", "kept", "seed", "batch_size", "device", "cache")
        run_evaluate(
            self.samples,
            self.reference,
            known(self.metrics) or None,
            self.count,
            self.request(),
            Options(**{name: getattr(self, name) for name in names}, pixels=pixels_of(self)),
            samples_split=self.samples_split,
            out=self.out,
        )


@dataclass(frozen=True)
class MakeReference:
    """Statistics and features of a data set, for `epg evaluate --reference`: computed once, with a manifest of how."""

    dataset: tyro.conf.Positional[Place]
    """A prepared set (best), whatever `epg prepare` takes, digits, or an .npz of ADM's layout."""
    out: Path
    """Folder for the reference."""
    features: tuple[str, ...] = ("inception",)
    """inception, encoder=RUN; several are computed in one pass."""
    inception: Path | None = None
    """File with Inception's weights, instead of the cache (EPG_CACHE) or a download."""
    image_size: Side | None = None
    """Of a set that is not prepared; FID depends on how images were scaled."""
    split: str | None = None
    """train, test, validation or val; train, or the only split of a prepared set, if not given."""
    kept: Images = 10_000
    """Images, chosen at random, whose features are kept for precision, recall, density, coverage and KID."""
    seed: Seed = 0
    """Of that choice."""
    background: Background = None
    """Of a set that is not prepared, as range and resize: see `epg prepare`."""
    range: Range = None
    resize: Resize = None
    batch_size: BatchSize = 64
    device: str = "auto"

    def __call__(self) -> None:
        from epg.evaluation.command import run_reference
        from epg.evaluation.jury import Options

        names = ("features", "inception", "image_size", "split", "kept", "seed", "batch_size", "device")
        options = Options(**{name: getattr(self, name) for name in names}, pixels=pixels_of(self))
        run_reference(self.dataset, self.out, options)


def pixels_of(verb: Evaluate | MakeReference) -> dict[str, object]:
    """The flags that say how pixels are read, those that were given."""
    given = {name: getattr(verb, name) for name in ("background", "range", "resize")}
    return {name: value for name, value in given.items() if value is not None}
