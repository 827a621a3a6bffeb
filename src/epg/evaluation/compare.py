"""`epg compare`: receipts side by side, and what forbids comparing them."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from epg.errors import UserError
from epg.evaluation import receipt
from epg.evaluation.output import new_figure, save_figure, writing
from epg.evaluation.receipt import Number, Receipt

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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


# Showing --------------------------------------------------------------------------------------------------------------


def text(number: Number | None) -> str:
    """Value and standard error to the digits that mean something."""
    if number is None:
        return "-"
    return f"{number.value:.4g}" + ("" if number.error is None else f" ± {number.error:.2g}")


def label(cells: Sequence[Cell]) -> str:
    """Name of a metric and which way is better."""
    number = next(cell.number for cell in cells if cell.number is not None)
    return f"{number.name} {'↑' if number.better == 'higher' else '↓'}"


def table(c: Comparison) -> Table:
    """For the terminal: the best in bold, with all that are not clearly worse."""
    shown = Table("", *map(escape, c.names), caption="bold: the best, and what is less than two standard errors away")
    for cells in c.metrics.values():
        texts = [escape(text(cell.number)) for cell in cells]
        shown.add_row(
            escape(label(cells)), *(f"[bold]{t}[/]" if cell.best else t for t, cell in zip(texts, cells, strict=True))
        )
    shown.add_section()
    for d in c.differences:
        style = "red" if d.why else "dim"
        shown.add_row(f"[{style}]{escape(d.name)}[/]", *(f"[{style}]{escape(v)}[/]" for v in d.values))
    return shown


def warnings(c: Comparison) -> list[str]:
    """A sentence for each obstacle."""
    return [f"not comparable because of the {d.name}: {d.why} ({' | '.join(d.values)})" for d in c.obstacles]


def markdown(c: Comparison) -> str:
    """The table for a README."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    lines = [line(["", *c.names]), line(["---"] * (1 + len(c.names)))]
    for cells in c.metrics.values():
        lines.append(line([label(cells), *(f"**{text(x.number)}**" if x.best else text(x.number) for x in cells)]))
    lines += [line([d.name, *d.values]) for d in c.differences]
    return "\n".join([*lines, "", *(f"- {w}" for w in warnings(c))]).rstrip() + "\n"


def comma_separated(c: Comparison) -> str:
    """One row for each metric of each receipt."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["receipt", "key", "metric", "value", "error", "better"])
    for key, cells in c.metrics.items():
        for name, cell in zip(c.names, cells, strict=True):
            if (n := cell.number) is not None:
                writer.writerow([name, key, n.name, n.value, "" if n.error is None else n.error, n.better])
    return stream.getvalue()


def as_json(c: Comparison) -> str:
    metrics = {
        key: {
            name: None if cell.number is None else {**cell.number.model_dump(), "best": cell.best}
            for name, cell in zip(c.names, cells, strict=True)
        }
        for key, cells in c.metrics.items()
    }
    content = {"receipts": c.names, "metrics": metrics, "differences": [asdict(d) for d in c.differences]}
    return json.dumps(content, indent=1) + "\n"


def draw(c: Comparison) -> "Figure":
    """A panel for each metric, a point with its standard error for each receipt, floors as dashed lines."""
    drawn = {key: cells for key, cells in c.metrics.items() if not key.endswith(FLOOR)}
    columns = min(4, len(drawn))
    rows = -(-len(drawn) // columns)
    figure = new_figure(3.4 * columns, 2.2 + 2.2 * rows)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (key, cells) in zip(panels, drawn.items(), strict=False):
        for i, cell in enumerate(cells):
            if cell.number is not None:
                axes.errorbar(i, cell.number.value, cell.number.error, fmt="o", capsize=3, color=f"C{i % 10}")
        floors = [cell.number.value for cell in c.metrics.get(key + FLOOR, []) if cell.number is not None]
        for floor in floors[:1]:
            axes.axhline(floor, color="grey", linestyle="--", linewidth=1, label="real held-out images")
            axes.legend(fontsize=7)
        axes.set_title(label(cells), fontsize=9)
        axes.set_xticks(range(len(c.names)), c.names, rotation=30, ha="right", fontsize=8)
        axes.set_xlim(-0.5, len(c.names) - 0.5)
        axes.grid(alpha=0.3, axis="y")
    for axes in panels[len(drawn) :]:
        axes.set_visible(False)
    if c.obstacles:
        reasons = ", ".join(d.name for d in c.obstacles)
        figure.suptitle(f"not comparable: {reasons} differ", color="firebrick", fontsize=10)
    return figure


WRITERS = {".md": markdown, ".csv": comma_separated, ".json": as_json}


def run_compare(files: Sequence[Path], out: Sequence[Path] = ()) -> Comparison:
    """Prints the table; writes it to every file in `out`, as the ending says: .md, .csv, .json or .png.

    A run folder stands for the `evaluation.json` in it. Raises UserError, ArtefactError, OutputError.
    """
    wrong = [str(file) for file in out if file.suffix not in (*WRITERS, ".png")]
    if wrong:
        raise UserError(f"--out {wrong[0]}: ends in none of {', '.join(WRITERS)}, .png")
    places = [file / "evaluation.json" if file.is_dir() else file for file in files]
    c = compare(dict(zip(short_names(places), map(receipt.read, places), strict=True)))
    for file in out:
        if file.suffix == ".png":
            save_figure(draw(c), file)
            continue
        with writing(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(WRITERS[file.suffix](c))
    Console().print(table(c))
    for warning in warnings(c):
        Console().print(f"[red]{escape(warning)}[/]")
    return c


def short_names(files: Sequence[Path]) -> list[str]:
    """What tells the files apart: their paths without what all have in common at either end."""
    parts = [file.resolve().with_suffix("").parts for file in files]
    if len(set(parts)) < len(parts):
        twice = next(str(b) for a, b in pairwise(sorted(files)) if a.resolve() == b.resolve())
        raise UserError(f"{twice}: named twice")
    while len({p[0] for p in parts}) == 1 and min(map(len, parts)) > 1:
        parts = [p[1:] for p in parts]
    while len({p[-1] for p in parts}) == 1 and min(map(len, parts)) > 1:
        parts = [p[:-1] for p in parts]
    return ["/".join(p) for p in parts]
