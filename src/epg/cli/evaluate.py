"""`epg evaluate` and `epg reference`."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import tyro

from epg.cli.drawing import Drawing
from epg.cli.judging import Against, Metrics
from epg.cli.named import ImageSet, Out, OutFolder, Samples
from epg.cli.numbers import BatchSize, Compared, Seed, Side
from epg.evaluation.measures import help_text, known


@dataclass(frozen=True)
class Evaluate(Drawing, Against):
    """Judge samples against real images: a table and a receipt (JSON).

    Without --reference, a run is compared with its own training images by a classifier trained on their labels: no
    download, and not an FID. For FID, sFID, IS, precision and recall as papers report them: --features inception
    --reference VIRTUAL_imagenet256_labeled.npz --count 50000. Processes of torchrun share the work.
    """

    RARE: ClassVar[frozenset[str]] = frozenset(
        {
            *(
                "batch_size",
                "cache",
                "classes",
                "dtype",
                "image_size",
                "interval",
                "labels",
                "sampler",
                "samples_split",
            ),
            *("seed", "split"),
        }
    )

    samples: tyro.conf.Positional[Samples]
    """Run folder, checkpoint, export, pipeline or Hub name (sampled here, nothing touches the disk); an .npz of ADM's
    layout; a folder of images; or a data set."""
    reference: ImageSet | None = None
    """A data set, a folder made by `epg reference`, or an .npz of ADM's; a run's own training images if not given."""
    metrics: Annotated[Metrics, tyro.conf.arg(help=f"The usual ones of --features if not given.{help_text()}")] = ()
    count: Compared | None = None
    """Number of samples; 1000 of a generator and all otherwise if not given. Papers use 50000."""
    out: Out | None = None
    """JSON file for the receipt; evaluation.json in the folder of the samples, or here, if not given."""
    image_size: Side | None = None
    """Of samples that are a data set which is not prepared."""
    samples_split: str | None = None
    """Of samples that are a data set: test, or the only split of a prepared set, if not given."""
    cache: bool = True
    """Keep statistics of the reference in the cache (EPG_CACHE)."""

    def __call__(self) -> None:
        words = known(self.metrics) or None
        from epg.evaluation.command import run_evaluate  # seconds, after what a wrong word is told

        run_evaluate(
            self.samples,
            self.reference,
            words,
            self.count,
            self.request(),
            self.options(),
            samples_split=self.samples_split,
            out=self.out,
        )


@dataclass(frozen=True)
class MakeReference(Against):
    """Compute the statistics of a data set once, for `epg evaluate`.

    Statistics and features, with a manifest of how they were computed; --reference takes the folder.
    """

    dataset: tyro.conf.Positional[ImageSet]
    """A prepared set (best), whatever `epg prepare` takes, digits, or an .npz of ADM's layout."""
    out: OutFolder
    """Folder for the reference."""
    image_size: Side | None = None
    """Of a set that is not prepared; FID depends on how images were scaled."""
    seed: Seed = 0
    """Of the choice of --kept."""
    batch_size: BatchSize = 64
    device: str = "auto"

    def __call__(self) -> None:
        from epg.evaluation.command import run_reference

        run_reference(self.dataset, self.out, self.options())
