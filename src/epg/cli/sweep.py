"""`epg sweep`."""

from dataclasses import dataclass
from typing import ClassVar

import tyro

from epg.cli.judging import Judging, Metrics
from epg.cli.named import Existing, ImageSet, OutFolder
from epg.cli.numbers import BatchSize, Compared, Decay, Seed
from epg.evaluation.measures import known


@dataclass(frozen=True)
class Sweep(Judging):
    """Find the best guidance, interval, steps and EMA of a run.

    Points share labels and noise. Each is a receipt in the sweep's folder: running it again continues, and other
    values are added to those that are there. `epg sweep RUN --guidance 1 1.5 2 2.5`.
    """

    RARE: ClassVar[frozenset[str]] = frozenset({"batch_size", "between", "golden", "seed", "tolerance", "width"})

    CONTINUES: ClassVar[bool] = True

    run: tyro.conf.Positional[Existing]
    """Run folder, checkpoint or export."""
    guidance: tuple[float, ...] = ()
    """Scales of guidance; 1 is none."""
    interval_low: tuple[float, ...] = ()
    """Unshifted noise levels above which guidance acts."""
    interval_high: tuple[float, ...] = ()
    """Unshifted noise levels up to which guidance acts."""
    steps: tuple[int, ...] = ()
    """Levels of the sampling grid; of a one-step model, evaluations."""
    between: tuple[float, ...] = ()
    """Unshifted noise levels to choose from for few steps: two (or --steps N ...) begin at the highest and go on at
    every falling choice of N - 1 of these."""
    ema: tuple[Decay, ...] = ()
    """Decays that the run kept."""
    width: tuple[float, ...] = ()
    """Relative widths of power-function averages, made after training from those the run kept (see `epg ema`)."""
    golden: bool = False
    """Search between the two values of one setting (golden section, parabolas) instead of trying a grid."""
    tolerance: float = 0.05
    """Where --golden ends: the width of the interval that the best lies in."""
    metric: str | None = None
    """Key of the receipts by which the best is chosen: fid, fd_classifier, precision...; FID or the first Frechet
    distance if not given."""
    metrics: Metrics = ()
    """What is computed, as for `epg evaluate`."""
    reference: ImageSet | None = None
    """As for `epg evaluate`; the run's own training images if not given."""
    count: Compared | None = None
    """Samples at each point; 1000 if not given."""
    seed: Seed = 0
    out: OutFolder | None = None
    """Folder for receipts, sweep.json and sweep.png; `sweep` in the run folder if not given."""
    batch_size: BatchSize = 64
    device: str = "auto"

    def __call__(self) -> None:
        from epg.analysis.sweep_points import Axes
        from epg.analysis.sweep_report import run_sweep
        from epg.sampling import Request

        run_sweep(
            self.run,
            Axes(self.ema, self.width, self.steps, self.guidance, self.interval_low, self.interval_high, self.between),
            metric=self.metric,
            golden=self.golden,
            tolerance=self.tolerance,
            count=self.count,
            reference=self.reference,
            words=known(self.metrics) or None,
            request=Request(seed=self.seed, batch_size=self.batch_size, device=self.device),
            options=self.options(),
            out=self.out,
        )
