"""Receipts side by side: which is better by more than chance, and what forbids comparing them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from epg.evaluation.receipt import Number, Receipt

CLEAR = 2.0  # standard errors of a difference that is more than chance
FLOOR = "_floor"
# Of `samples`: what it is called and, where it changes the measure itself, why numbers are then not comparable.
SETTINGS = {
    "count": ("number of samples", "Frechet distances fall with the number of samples"),
    "shape": ("image shape", "other preprocessing"),
    "labels": ("choice of labels", "random and balanced labels are different distributions"),
    "to_pixels": ("rounding to pixels", "other images"),
    "recipe": ("recipe", ""),
    "stage": ("stage", ""),
    "step": ("training step", ""),
    "trained_on": ("training images", ""),
    "weights": ("weights", ""),
    "ema": ("EMA", ""),
    "guide": ("guide", ""),
    "dtype": ("precision", ""),
    "seed": ("seed", ""),
    "nfe": ("NFE", ""),
}


@dataclass(frozen=True)
class Difference:
    """A setting in which receipts differ."""

    name: str
    values: list[str]
    """One for each receipt; a dash where it says nothing."""
    why: str
    """Why numbers are then not comparable; empty where it is only another model or way to sample."""


@dataclass(frozen=True)
class Cell:
    """A metric in one receipt."""

    number: Number | None
    best: bool = False
    """Whether it is the best one, or less than two standard errors worse than it."""


@dataclass(frozen=True)
class Comparison:
    """Everything that the table shows."""

    names: list[str]
    metrics: dict[str, list[Cell]]
    """By key; a cell for each receipt."""
    differences: list[Difference]

    @property
    def obstacles(self) -> list[Difference]:
        """The differences that forbid comparing the numbers."""
        return [d for d in self.differences if d.why]


def compare(receipts: Mapping[str, Receipt]) -> Comparison:
    """Receipts by name."""
    keys = dict.fromkeys(key for r in receipts.values() for key in r.metrics)
    metrics = {key: _row([r.metrics.get(key) for r in receipts.values()], key) for key in keys}
    return Comparison(list(receipts), metrics, differences(list(receipts.values())))


def clearly(x: Number, y: Number) -> bool:
    """Whether two numbers differ by more than chance."""
    return abs(x.value - y.value) >= CLEAR * ((x.error or 0) ** 2 + (y.error or 0) ** 2) ** 0.5


def _row(numbers: Sequence[Number | None], key: str) -> list[Cell]:
    present = [n for n in numbers if n is not None]
    if key.endswith(FLOOR) or len(present) < 2:  # what real images reach is no contest
        return [Cell(n) for n in numbers]
    best = (max if present[0].better == "higher" else min)(present, key=lambda n: n.value)
    return [Cell(n, n is not None and (n is best or not clearly(n, best))) for n in numbers]


def differences(receipts: Sequence[Receipt]) -> list[Difference]:
    """Every setting that is not the same in all receipts, obstacles first."""
    found = []
    for name, values, why in _settings(receipts):
        if len({json.dumps(v, sort_keys=True) for v in values}) > 1:
            found.append(Difference(name, ["-" if v is None else _short(str(v)) for v in values], why))
    return sorted(found, key=lambda d: not d.why)


def _settings(receipts: Sequence[Receipt]) -> Iterator[tuple[str, list[Any], str]]:
    """Name, a value for each receipt, and why other values forbid comparing."""
    # Pixels where they are known: the same images may be in a file, in the cache, or just read.
    images = [r.reference.get("pixels") or r.reference.get("sha256") or "" for r in receipts]
    named = [f"{r.reference.get('name')} {pixels[:12]}" for r, pixels in zip(receipts, images, strict=True)]
    yield "reference", named, "distances are to other images"
    kept = [r.reference.get("kept") for r in receipts]
    yield "reference images kept", kept, "other images for precision and recall"
    for key, (name, why) in SETTINGS.items():
        yield name, [r.samples.get(key) for r in receipts], why
    for name in dict.fromkeys(name for r in receipts for name in r.extractors):
        used = [r.extractors.get(name) for r in receipts]
        told = [None if e is None else f"{e['sha256'][:12]} {e['preprocessing']}" for e in used]
        if len({t for t in told if t is not None}) > 1:  # at least two used it
            yield f"{name} features", told, f"numbers of other {name} weights"
    means = [number and number.name for number in (r.metrics.get("fdr") for r in receipts)]
    if len({name for name in means if name is not None}) > 1:
        yield "mean over features", means, "a mean over other features"
    sampling = [r.samples.get("sampling") or {} for r in receipts]
    for name in dict.fromkeys(name for s in sampling for name in s):
        yield name, [s.get(name) for s in sampling], ""


def _short(text: str) -> str:
    is_hash = len(text) == 64 and all(c in "0123456789abcdef" for c in text)
    return text[:12] if is_hash else text
