"""Receipts side by side: which is better by more than chance, and what forbids comparing them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from epg.errors import UserError
from epg.evaluation.receipt import Number, Receipt

if TYPE_CHECKING:
    pass

CLEAR = 2.0  # standard errors of a difference that is more than chance
FLOOR = "_floor"
# Of `samples`: what changes the measure itself, and what belongs to the model and how it samples.
MEASURE = {
    "count": "number of samples",
    "shape": "image shape",
    "labels": "choice of labels",
    "to_pixels": "rounding to pixels",
}
MODEL = {
    "recipe": "recipe",
    "stage": "stage",
    "step": "training step",
    "trained_on": "training images",
    "weights": "weights",
    "ema": "EMA",
    "guide": "guide",
    "dtype": "precision",
    "seed": "seed",
    "nfe": "NFE",
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
    """Receipts by name. Raises UserError for fewer than two."""
    if len(receipts) < 2:
        raise UserError("epg compare: pass at least two receipts of `epg evaluate`")
    keys = dict.fromkeys(key for r in receipts.values() for key in r.metrics)
    metrics = {key: _row([r.metrics.get(key) for r in receipts.values()], key) for key in keys}
    return Comparison(list(receipts), metrics, differences(list(receipts.values())))


def _row(numbers: Sequence[Number | None], key: str) -> list[Cell]:
    present = [n for n in numbers if n is not None]
    if key.endswith(FLOOR) or len(present) < 2:  # what real images reach is no contest
        return [Cell(n) for n in numbers]
    sign = 1 if present[0].better == "higher" else -1
    best = max(present, key=lambda n: sign * n.value)

    def near(n: Number) -> bool:
        error = ((n.error or 0) ** 2 + (best.error or 0) ** 2) ** 0.5
        return n is best or sign * (best.value - n.value) < CLEAR * error

    return [Cell(n, n is not None and near(n)) for n in numbers]


def differences(receipts: Sequence[Receipt]) -> list[Difference]:
    """Every setting that is not the same in all receipts, obstacles first."""
    found = [
        _difference("reference", [_reference(r) for r in receipts], "distances are to other images"),
        _difference(
            "reference images kept",
            [r.reference.get("kept") for r in receipts],
            "other images for precision and recall",
        ),
        *(_difference(name, [r.samples.get(key) for r in receipts], _WHY[key]) for key, name in MEASURE.items()),
        *_extractors(receipts),
        *(_difference(name, [r.samples.get(key) for r in receipts]) for key, name in MODEL.items()),
        *_sampling(receipts),
    ]
    return [d for d in found if d is not None]


_WHY = {
    "count": "Frechet distances fall with the number of samples",
    "shape": "other preprocessing",
    "labels": "random and balanced labels are different distributions",
    "to_pixels": "other images",
}


def _difference(name: str, values: Sequence[Any], why: str = "") -> Difference | None:
    shown = ["-" if value is None else _short(value) for value in values]
    return Difference(name, shown, why) if len({json.dumps(v, sort_keys=True) for v in values}) > 1 else None


def _short(value: Any) -> str:
    text = str(value)
    is_hash = len(text) == 64 and all(c in "0123456789abcdef" for c in text)
    return text[:12] if is_hash else text


def _reference(r: Receipt) -> str:
    """Pixels where they are known: the same images may be in a file, in the cache, or just read."""
    identity = r.reference.get("pixels") or r.reference.get("sha256") or ""
    return f"{r.reference.get('name')} {identity[:12]}"


def _extractors(receipts: Sequence[Receipt]) -> list[Difference | None]:
    """Weights or preprocessing of those that at least two receipts used."""
    names = dict.fromkeys(name for r in receipts for name in r.extractors)
    found = []
    for name in names:
        used = [r.extractors.get(name) for r in receipts]
        told = [None if e is None else f"{e['sha256'][:12]} {e['preprocessing']}" for e in used]
        if len({t for t in told if t is not None}) > 1:
            found.append(_difference(f"{name} features", told, f"numbers of other {name} weights"))
    return found


def _sampling(receipts: Sequence[Receipt]) -> list[Difference | None]:
    settings = [r.samples.get("sampling") or {} for r in receipts]
    names = dict.fromkeys(name for s in settings for name in s)
    return [_difference(name, [s.get(name) for s in settings]) for name in names]
