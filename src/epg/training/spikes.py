"""Loss spikes: steps whose loss stands far above what the last steps had."""

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field


class LossSpikeWarning(UserWarning):
    """A loss term was far above its recent median."""


@dataclass(frozen=True)
class Spike:
    """One step at which one term stood out."""

    step: int
    term: str
    value: float
    median: float

    @property
    def ratio(self) -> float:
        return self.value / self.median

    def __str__(self) -> str:
        return f"step {self.step}: {self.term} {self.value:.4g} is {self.ratio:.1f} times its median {self.median:.4g}"


@dataclass
class RobustWindow:
    """Median and spread of the last `size` logarithms, from their quartiles, which outliers hardly move."""

    size: int
    recent: deque[float] = field(default_factory=deque)
    ordered: list[float] = field(default_factory=list)

    def add(self, value: float) -> None:
        if len(self.recent) == self.size:
            del self.ordered[bisect_left(self.ordered, self.recent.popleft())]
        self.recent.append(value)
        insort(self.ordered, value)

    @property
    def median(self) -> float:
        return self.ordered[len(self.ordered) // 2]

    @property
    def deviation(self) -> float:
        """Standard deviation of a normal distribution with these quartiles."""
        n = len(self.ordered)
        return (self.ordered[3 * n // 4] - self.ordered[n // 4]) / 1.349


class SpikeDetector:
    """Reports values more than `sigmas` robust deviations, and at least `factor` times, above the recent median.

    Works on logarithms, as losses vary in proportion to their size. The last `window` values of each term count,
    spikes among them (the quartiles hardly notice); nothing is reported before `warm_up` values are there. A loss that
    stays high is reported once, when it rises. A run that resumes fills its windows anew.
    """

    def __init__(self, window: int = 128, warm_up: int = 32, sigmas: float = 6.0, factor: float = 5.0) -> None:
        self.window, self.warm_up, self.sigmas, self.rise = window, warm_up, sigmas, math.log(factor)
        self.windows: dict[str, RobustWindow] = {}
        self.high: dict[str, bool] = {}
        self.count = 0
        """Steps with a spike so far."""

    def check(self, step: int, terms: Mapping[str, float]) -> list[Spike]:
        """The spikes among the terms of one step, the highest first; values that are not positive are left out."""
        found = [
            spike
            for term, value in terms.items()
            if value > 0 and math.isfinite(value) and (spike := self._check(step, term, value)) is not None
        ]
        self.count += bool(found)
        return sorted(found, key=lambda spike: -spike.ratio)

    def _check(self, step: int, term: str, value: float) -> Spike | None:
        window = self.windows.setdefault(term, RobustWindow(self.window))
        above, was_high = 0.0, self.high.get(term, False)
        if len(window.recent) >= self.warm_up:
            above = math.log(value) - window.median
            self.high[term] = above > max(self.sigmas * window.deviation, self.rise)
        spike = Spike(step, term, value, value / math.exp(above)) if self.high.get(term) and not was_high else None
        window.add(math.log(value))
        return spike
