"""The settings that a sweep tries, as points of a grid."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from epg.config.sections import SamplingConfig
from epg.errors import UserError


@dataclass(frozen=True)
class Point:
    """Settings to sample with; None is the run's own."""

    ema: float | None = None
    width: float | None = None
    """Of a power-function average made after training, instead of `ema`."""
    steps: int | None = None
    guidance: float | None = None
    interval_low: float | None = None
    interval_high: float | None = None
    between: tuple[float, ...] | None = None
    """Unshifted levels after the highest, falling, one for each further step, in place of the grid."""

    @property
    def weights(self) -> "Point":
        """The part that says which weights."""
        return Point(self.ema, self.width)

    @property
    def name(self) -> str:
        """Short, for files and labels."""
        told = {k: text(v, "-") for k, v in asdict(self).items() if v is not None and v != ()}
        return "_".join(f"{k}-{v}" for k, v in told.items()) or "own"

    def at(self, name: str) -> float | None:
        """A setting as one number; of several levels the first."""
        value = getattr(self, name)
        return (value[0] if value else None) if isinstance(value, tuple) else value

    def changes(self, own_interval: tuple[float, float], highest: float) -> dict[str, Any]:
        """The sampling settings that differ from the run's, whose highest level is `highest`."""
        changes: dict[str, Any] = {k: v for k in ("steps", "guidance") if (v := getattr(self, k)) is not None}
        if self.interval_low is not None or self.interval_high is not None:
            low, high = (
                own if mine is None else mine
                for own, mine in zip(own_interval, (self.interval_low, self.interval_high), strict=True)
            )
            changes["interval"] = (low, high)
        if self.between is not None:
            changes["levels"] = (highest, *self.between)
        return changes


@dataclass(frozen=True)
class Axes:
    """Values to try of every setting; empty leaves the run's own."""

    ema: Sequence[float] = ()
    width: Sequence[float] = ()
    steps: Sequence[int] = ()
    guidance: Sequence[float] = ()
    interval_low: Sequence[float] = ()
    interval_high: Sequence[float] = ()
    between: Sequence[float] = ()
    """Levels to choose from: with N steps every falling choice of N - 1 of them."""

    @property
    def varied(self) -> list[str]:
        """Settings with several values."""
        return [f.name for f in fields(self) if len(getattr(self, f.name)) > 1]

    def grid(self) -> Iterator[Point]:
        """Every combination; points with the same weights follow each other."""
        weights = [Point(ema=e) for e in self.ema] + [Point(width=w) for w in self.width] or [Point()]
        rest = [getattr(self, name) or (None,) for name in ("guidance", "interval_low", "interval_high")]
        for of, walk, (guidance, low, high) in itertools.product(weights, self.walks(), itertools.product(*rest)):
            steps, between = walk
            yield replace(of, steps=steps, between=between, guidance=guidance, interval_low=low, interval_high=high)

    def walks(self) -> list[tuple[int | None, tuple[float, ...] | None]]:
        """Steps, and the levels between the highest and the image. Raises UserError where they are too few."""
        if not self.between:
            return [(steps, None) for steps in self.steps or (None,)]
        levels = sorted(set(self.between), reverse=True)
        if max(few := self.steps or (2,)) - 1 > len(levels):
            raise UserError(f"--between: {max(few)} steps need {max(few) - 1} levels to choose from, not {len(levels)}")
        return [(steps, chosen) for steps in few for chosen in itertools.combinations(levels, steps - 1)]


def flags(point: Point, sampling: SamplingConfig) -> list[str]:
    """As `epg sample` and `epg evaluate` take them; weights of a width are a folder instead."""
    names = ("ema", "guidance") if point.between is not None else ("ema", "steps", "guidance")
    words = [f"--{name} {getattr(point, name):g}" for name in names if getattr(point, name) is not None]
    if point.interval_low is not None or point.interval_high is not None:
        words.append(f"--interval {text(sampling.interval)}")
    if point.between is not None:
        words.append(f"--levels {text(sampling.levels or ())}")
    return words


def text(value: float | tuple[float, ...], between: str = " ") -> str:
    """A setting as people, and flags, have it."""
    return between.join(f"{v:g}" for v in value) if isinstance(value, tuple) else f"{value:g}"
