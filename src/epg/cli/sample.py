"""`epg sample`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro


@dataclass(frozen=True)
class Sample:
    """Draw images from a trained generator: PNG files, a grid, and optionally an ADM .npz and an animation.

    The same command continues an interrupted run; `torchrun --nproc-per-node N -m epg.cli sample ...` shares the work.
    """

    checkpoint: tyro.conf.Positional[Path]
    """Run folder, checkpoint or export."""
    out: Path = Path("samples")
    """Folder for the images."""
    count: int = 64
    """Number of images; a larger one continues a finished folder."""
    classes: tuple[str, ...] = ()
    """Class names (or one of their synonyms) or numbers to draw; all classes if not given."""
    labels: Literal["balanced", "random"] = "balanced"
    """Classes in turn, or drawn at random (as often as in training where the checkpoint says how often that was)."""
    seed: int = 0
    """Image i depends on the seed, its label and i alone, not on batches or processes."""
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
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of the network; samplers, norms and sums stay in float32."""
    compile: bool = False
    """torch.compile every transformer block: faster on a GPU after a minute of compiling."""
    batch_size: int = 64
    """Images computed together by one process."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    npz: bool = False
    """Also write samples.npz (arr_0 uint8 NHWC, arr_1 labels), which ADM's evaluator reads."""
    animation: Literal["gif", "png", "webp"] | None = None
    """Also show the way from noise to the first images: x_t and beside it D(x_t, t)."""

    def __call__(self) -> None:
        from epg.sampling import Request, write_samples

        changes = {name: getattr(self, name) for name in ("sampler", "steps", "guidance", "interval")}
        shared = ("count", "classes", "labels", "seed", "guide", "ema", "dtype", "compile", "batch_size", "device")
        request = Request(
            **{name: getattr(self, name) for name in (*shared, "npz", "animation")},
            changes={name: value for name, value in changes.items() if value is not None},
        )
        write_samples(self.checkpoint, self.out, request)
