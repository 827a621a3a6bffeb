"""Class names: matched between data sets by name, never by number, and shown to people."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from epg.errors import DataError


def renumbered(
    labels: NDArray[np.int64], names: tuple[str, ...], wanted: tuple[str, ...], whose: str
) -> NDArray[np.int64]:
    """Labels (N,) of classes `names` as numbers in `wanted`, by name. Raises DataError for names that are not there."""
    place = {name: number for number, name in enumerate(wanted)}
    used = [names[number] for number in np.unique(labels) if number >= 0]
    if missing := [name for name in used if name not in place]:
        raise DataError(
            f"{whose} has no class {', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''}; its {len(wanted)} "
            f"classes are {some(wanted)}. Rename the classes, or leave these images out"
        )
    table = np.array([place.get(name, -1) for name in names] + [-1], dtype=np.int64)  # -1 stays -1
    return table[labels]


def some(names: Sequence[str], shown: int = 6) -> str:
    """The first few of many names, and the last."""
    if len(names) <= shown:
        return ", ".join(names) or "none"
    return f"{', '.join(names[: shown - 1])} ... {names[-1]}"


def classes_line(names: Sequence[str], counts: Sequence[int]) -> str:
    """How many classes, what they are called, and how many images they have."""
    if not names:
        return "no classes"
    each = [f"{name} ({count})" for name, count in zip(names, counts, strict=True)]
    low, high = min(counts), max(counts)
    spread = f"; {low} to {high} images each" if len(names) > 6 and low < high else ""
    empty = f"; {sum(count == 0 for count in counts)} without images" if low == 0 else ""
    return f"{len(names)} class{'es' if len(names) > 1 else ''}: {some(each)}{spread}{empty}"
