"""`epg probe`, `epg denoising` and `epg neighbours`: what a model has learned, and whether it has only memorised."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro


@dataclass(frozen=True)
class Probe:
    """What an encoder knows of noisy images: linear probe and k-NN accuracy by noise level.

    Random weights and plain pixels are probed beside it. Works for encoders of stage 1, of generators, and for weight
    files of the authors' release.
    """

    encoder: tyro.conf.Positional[Path]
    """Run folder of any stage, checkpoint, export, or weight file."""
    data: str | None = None
    """Labelled images; the encoder's own if not given."""
    recipe: str | None = None
    """Architecture of a weight file, such as imagenet256-b."""
    ema: float | None = None
    """Of a generator: which EMA decay to load; the first if not given."""
    levels: tuple[float, ...] = (0.002, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0)
    """Unshifted noise levels."""
    pool: Literal["cls", "patches"] = "cls"
    """Features: the CLS token, or the mean of the patch tokens."""
    train_count: int = 10_000
    """Images that the probes are trained on, at most."""
    test_count: int = 5_000
    """Images that they are tested on, at most."""
    seed: int = 0
    out: Path | None = None
    """Folder for probe.json and probe.png; `analysis` in the run folder if not given."""
    device: str = "auto"

    def __call__(self) -> None:
        from epg.evaluation.probe_report import run_probe

        run_probe(
            self.encoder,
            data=self.data,
            recipe=self.recipe,
            ema=self.ema,
            levels=self.levels,
            pool=self.pool,
            train_count=self.train_count,
            test_count=self.test_count,
            seed=self.seed,
            out=self.out,
            device=self.device,
        )
