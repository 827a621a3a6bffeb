"""Options of every verb that draws samples."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import tyro

from epg.cli.named import Guide
from epg.cli.numbers import BatchSize, Decay, Seed
from epg.samplers import SAMPLERS

if TYPE_CHECKING:
    from epg.sampling import Request


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """What to draw and how; verbs add their own."""

    RARE: ClassVar[frozenset[str]] = frozenset({"ema", "grid", "guide", "levels"})

    classes: tuple[str, ...] = ()
    """Class names (or one of their synonyms) or numbers to draw; all classes if not given."""
    labels: Literal["balanced", "random"] = "balanced"
    """Classes in turn, or drawn at random as in training, which is how ADM's published numbers are made."""
    seed: Seed = 0
    """Image i depends on the seed, its label and i alone, not on batches or processes."""
    sampler: Annotated[str | None, tyro.conf.arg(metavar=f"{{{','.join(SAMPLERS)}}}")] = None
    """The recipe's if not given."""
    steps: int | None = None
    """Levels of the sampling grid; of a consistency model, evaluations."""
    grid: Literal["karras", "uniform_t"] | None = None
    """Where the levels lie: eq. 10, or evenly in the time of flow matching; the recipe's if not given."""
    levels: tuple[float, ...] | None = None
    """Unshifted noise levels to take instead of the grid, falling."""
    guidance: float | None = None
    """Scale of guidance; 1 is none."""
    interval: tuple[float, float] | None = None
    """Unshifted noise levels (low, high] in which guidance acts."""
    guide: Guide | None = None
    """In place of classifier-free guidance: a weaker checkpoint (autoguidance), or `internal`, the head on the model's
    own encoder, where it was trained with one."""
    ema: Decay | None = None
    """Which EMA decay to load, 0 for the weights as trained; the first if not given."""
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of the network; samplers, norms, sums and features stay in float32."""
    batch_size: BatchSize = 64
    """Images drawn together by one process; none of them depends on it beyond rounding."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""

    def request(self, **further: Any) -> "Request":
        """These options, and a verb's own, as the samplers take them."""
        from epg.sampling import Request

        changes = {name: getattr(self, name) for name in ("sampler", "steps", "grid", "levels", "guidance", "interval")}
        shared = ("classes", "labels", "seed", "ema", "dtype", "batch_size", "device")
        internal = self.guide == Path("internal")
        if internal:
            changes["guide"] = "internal"
        return Request(
            **{name: getattr(self, name) for name in shared},
            guide=None if internal else self.guide,
            changes={name: value for name, value in changes.items() if value is not None},
            **further,
        )
