"""Standard errors from the finite number of samples: what another set of them would change."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from epg.evaluation.metrics.frechet import Moments, frechet_distance, merged, statistics
from epg.randomness import permutation

GROUPS = 5
JACKKNIFE = f"jackknife over {GROUPS} groups of the samples"


def jackknife(statistic: Callable[[NDArray[np.intp]], float], count: int) -> float | None:
    """Standard error of a statistic of the samples with given indices, from leaving out a fifth of them in turn."""
    if count < 2 * GROUPS:
        return None
    return spread([statistic(np.setdiff1d(np.arange(count), group)) for group in groups_of(count)])


def groups_of(count: int) -> list[NDArray[np.intp]]:
    """Five equal groups of indices, dealt out at random: samples with labels in turn repeat with a period."""
    order = permutation(count, 0, "jackknife")
    return [np.sort(order[group::GROUPS]) for group in range(GROUPS)]


def spread(values: Sequence[float]) -> float:
    """Jackknife error from the values with one group left out each."""
    return float(np.sqrt((len(values) - 1) * np.var(values)))


def frechet(features: NDArray[np.float32], reference: Moments) -> tuple[float, float | None]:
    """Frechet distance and its standard error; the moments of each group are computed once."""
    if len(features) < 2 * GROUPS:
        return frechet_distance(statistics(features), reference), None
    groups = [statistics(features[group]) for group in groups_of(len(features))]
    without = [frechet_distance(merged(groups[:i] + groups[i + 1 :]), reference) for i in range(GROUPS)]
    return frechet_distance(merged(groups), reference), spread(without)
