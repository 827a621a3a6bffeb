"""`epg evaluate`."""

from dataclasses import dataclass
from pathlib import Path

import tyro


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

    def __call__(self) -> None:
        from epg.evaluation.quick import evaluate_checkpoint

        evaluate_checkpoint(
            self.checkpoint,
            count=self.count,
            seed=self.seed,
            batch_size=self.batch_size,
            out=self.out,
            device=self.device,
        )
