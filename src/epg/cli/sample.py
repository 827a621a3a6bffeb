"""`epg sample`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro


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

    def __call__(self) -> None:
        from epg.sampling import write_samples

        write_samples(
            self.checkpoint,
            self.out,
            count=self.count,
            classes=self.classes,
            random_labels=self.random_labels,
            seed=self.seed,
            changes={
                name: value
                for name in ("sampler", "steps", "guidance", "interval")
                if (value := getattr(self, name)) is not None
            },
            guide=self.guide,
            ema=self.ema,
            batch_size=self.batch_size,
            device=self.device,
            npz=self.npz,
        )
