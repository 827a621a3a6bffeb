"""Finding the best of a function of one number with few, expensive calls."""

import math
from collections.abc import Callable

RATIO = (math.sqrt(5) - 1) / 2


def golden_section(f: Callable[[float], float], low: float, high: float, tolerance: float) -> float:
    """Where `f` is smallest in [low, high], to within `tolerance`, if it falls and then rises.

    Both ends are tried as well, so that a minimum at the edge of the range is found and can be told as one. Each step
    costs one call and shrinks the interval by 0.618. Raises ValueError for an empty range or tolerance.
    """
    if not low < high or not tolerance > 0:
        raise ValueError(f"range {low} to {high}, tolerance {tolerance}: must be rising and positive")
    values: dict[float, float] = {}

    def at(x: float) -> float:
        if x not in values:
            values[x] = f(x)
        return values[x]

    at(low), at(high)
    a, b = low, high
    left, right = b - RATIO * (b - a), a + RATIO * (b - a)
    while b - a > tolerance:
        if at(left) <= at(right):
            b, right = right, left
            left = b - RATIO * (b - a)
        else:
            a, left = left, right
            right = a + RATIO * (b - a)
    return min(values, key=lambda x: values[x])
