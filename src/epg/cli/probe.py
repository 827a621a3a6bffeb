"""`epg probe`, `features`, `denoising` and `neighbours`: what a model has learned, and whether it only memorised."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import tyro

from epg.cli.judging import Judging
from epg.cli.named import Existing, ImageSet, OutFolder, Samples
from epg.cli.numbers import BatchSize, Between, Compared, Decay, Images, Level, Seed
from epg.cli.paths import Place


@dataclass(frozen=True)
class Probe:
    """See what an encoder knows of noisy images: linear probe, k-NN.

    Random weights and plain pixels are probed beside it. Works for encoders of stage 1, of generators, and for weight
    files of the authors' release.
    """

    encoder: tyro.conf.Positional[Existing]
    """Run folder of any stage, checkpoint, export, or weight file."""
    data: ImageSet | None = None
    """Labelled images; the encoder's own if not given."""
    recipe: Place | None = None
    """Architecture of a weight file, a .yaml file, where no recipe of ours has it."""
    ema: Decay | None = None
    """Of a generator: which EMA decay to load, 0 for the weights as trained; the first if not given."""
    levels: tuple[Level, ...] = (0.002, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0)
    """Unshifted noise levels."""
    pool: Literal["cls", "patches"] = "cls"
    """Features: the CLS token, or the mean of the patch tokens."""
    train_count: Compared = 10_000
    """Images that the probes are trained on, at most."""
    test_count: Compared = 5_000
    """Images that they are tested on, at most."""
    seed: Seed = 0
    out: OutFolder | None = None
    """Folder for probe.json and probe.png; `analysis` in the run folder if not given."""
    device: str = "auto"

    def __call__(self) -> None:
        from epg.analysis.probe import run_probe

        run_probe(**vars(self))


@dataclass(frozen=True)
class Features:
    """See what encoders make of noisy images: their tokens as colours.

    By noise level, and how far features spread. Several runs, such as one with a pre-trained encoder and one from
    scratch, are shown the same images and noise.
    """

    runs: tyro.conf.Positional[tuple[Existing, ...]]
    """Run folders of any stage, checkpoints, exports, or weight files."""
    data: ImageSet | None = None
    """Images; those of the first run if not given, its test split where it has one."""
    ema: Decay | None = None
    """Of generators: which EMA decay to load, 0 for the weights as trained; the first if not given."""
    levels: tuple[Level, ...] = (0.002, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0)
    """Unshifted noise levels."""
    count: Compared = 1000
    """Images that the spread is measured on, at most."""
    shown: Images = 4
    """Images in the picture of colours, at most."""
    seed: Seed = 0
    out: OutFolder | None = None
    """Folder for features.json and the pictures; `analysis` in the first run folder if not given."""
    device: str = "auto"

    def __call__(self) -> None:
        from epg.analysis.feature_report import run_features

        run_features(**vars(self))


@dataclass(frozen=True)
class Neighbours(Judging):
    """Find the training images nearest to samples: are they copies?

    And a memorisation score against held-out images: 0 for a generator that cannot tell training from held-out images,
    and 1 for one that only copies.
    """

    RARE: ClassVar[frozenset[str]] = frozenset({"batch_size", "most"})

    samples: tyro.conf.Positional[Samples]
    """Run folder, checkpoint or export (sampled here), an .npz of ADM's layout, or a folder of images."""
    train: ImageSet | None = None
    """Images it was trained on; a run's own if not given."""
    held_out: ImageSet | None = None
    """Images of the same kind it has never seen; the test split, and what --data.fraction left out, if not given."""
    count: Compared | None = None
    """Number of samples; 1000 of a generator and all otherwise if not given."""
    most: Compared = 50_000
    """Training images (and held-out images) at most; of more, so many are chosen at random."""
    seed: Seed = 0
    guidance: float | None = None
    """Scale of guidance; 1 is none."""
    steps: int | None = None
    """Levels of the sampling grid."""
    ema: Decay | None = None
    """Which EMA decay to load, 0 for the weights as trained; the first if not given."""
    out: OutFolder | None = None
    """Folder for neighbours.json, curves and sheets; `analysis` in the run folder if not given."""
    batch_size: BatchSize = 64
    device: str = "auto"

    def __call__(self) -> None:
        from epg.analysis.neighbours import run_neighbours
        from epg.sampling import Request

        changes = {name: value for name in ("guidance", "steps") if (value := getattr(self, name)) is not None}
        shared = {name: getattr(self, name) for name in ("seed", "ema", "batch_size", "device")}
        own = ("samples", "train", "held_out", "features", "inception", "count", "most", "out")
        run_neighbours(**{name: getattr(self, name) for name in own}, request=Request(**shared, changes=changes))


@dataclass(frozen=True)
class Denoising:
    """Measure the denoising error of a generator by noise level.

    On training and on held-out images.
    """

    model: tyro.conf.Positional[Existing]
    """Run folder, checkpoint or export."""
    held_out: ImageSet | None = None
    """Images of the same kind it has never seen; the test split, and what --data.fraction left out, if not given."""
    ema: Decay | None = None
    """Which EMA decay to load, 0 for the weights as trained; the first if not given."""
    levels: Annotated[int, Between(2, 1000)] = 16
    """Noise levels, from sigma_min to sigma_max."""
    count: Compared = 2000
    """Training images, and held-out images, at most."""
    seed: Seed = 0
    out: OutFolder | None = None
    """Folder for denoising.json and denoising.png; `analysis` in the run folder if not given."""
    device: str = "auto"

    def __call__(self) -> None:
        from epg.analysis.denoising import run_denoising

        run_denoising(**vars(self))
