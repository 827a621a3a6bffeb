"""Receipts side by side as table, Markdown, JSON and figure."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from epg.analysis.compare import FLOOR, Cell, Comparison, compare
from epg.analysis.report import new_figure, save_figure
from epg.errors import UserError
from epg.evaluation import receipt
from epg.evaluation.receipt import Number
from epg.storage.files import replace_text
from epg.storage.outputs import writing

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def text(number: Number | None) -> str:
    """Value and standard error to the digits that mean something."""
    if number is None:
        return "-"
    return f"{number.value:.4g}" + ("" if number.error is None else f" ± {number.error:.2g}")


def titled(number: Number) -> str:
    """Name of a metric and which way is better."""
    return f"{number.name} {'↑' if number.better == 'higher' else '↓'}"


def label(cells: Sequence[Cell]) -> str:
    return titled(next(cell.number for cell in cells if cell.number is not None))


def table(c: Comparison) -> Table:
    """For the terminal: the best in bold, with all that are not clearly worse."""
    shown = Table("", *map(escape, c.names), caption="bold: the best, and what is less than two standard errors away")
    for cells in c.metrics.values():
        texts = [f"[bold]{text(x.number)}[/]" if x.best else text(x.number) for x in cells]
        shown.add_row(escape(label(cells)), *texts)
    shown.add_section()
    for d in c.differences:
        style = "red" if d.why else "dim"
        shown.add_row(*map(escape, (d.name, *d.values)), style=style)
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
    for place, (key, cells) in enumerate(drawn.items()):
        axes = figure.add_subplot(rows, columns, place + 1)
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
    if c.obstacles:
        reasons = ", ".join(d.name for d in c.obstacles)
        figure.suptitle(f"not comparable: {reasons} differ", color="firebrick", fontsize=10)
    return figure


WRITERS = {".md": markdown, ".json": as_json}


def run_compare(files: Sequence[Path], out: Sequence[Path] = ()) -> Comparison:
    """Prints the table; writes it to every file in `out`, as the ending says: .md, .json or .png.

    A run folder stands for the `evaluation.json` in it. Raises UserError, ArtefactError, OutputError.
    """
    wrong = [str(file) for file in out if file.suffix not in (*WRITERS, ".png")]
    if wrong:
        raise UserError(f"--out {wrong[0]}: ends in none of {', '.join(WRITERS)}, .png")
    places = [file / "evaluation.json" if file.is_dir() else file for file in files]
    receipts = [receipt.read(place) for place in places]
    if len(receipts) < 2:
        raise UserError("epg compare: pass at least two receipts of `epg evaluate`")
    c = compare(dict(zip(short_names(places), receipts, strict=True)))
    for file in out:
        if file.suffix == ".png":
            save_figure(draw(c), file)
        else:
            with writing(file):
                replace_text(file, WRITERS[file.suffix](c))
    Console().print(table(c))
    for warning in warnings(c):
        Console().print(f"[red]{escape(warning)}[/]")
    return c


def short_names(files: Sequence[Path]) -> list[str]:
    """What tells files or folders apart: their paths without what all have in common at either end, and no .json."""
    whole = [file.resolve() for file in files]
    parts = [(file.with_suffix("") if file.suffix == ".json" else file).parts for file in whole]
    if len(set(parts)) < len(parts):
        twice = next(str(b) for a, b in pairwise(sorted(files)) if a.resolve() == b.resolve())
        raise UserError(f"{twice}: named twice")
    while len({p[0] for p in parts}) == 1 and min(map(len, parts)) > 1:
        parts = [p[1:] for p in parts]
    while len({p[-1] for p in parts}) == 1 and min(map(len, parts)) > 1:
        parts = [p[:-1] for p in parts]
    return ["/".join(p) for p in parts]
