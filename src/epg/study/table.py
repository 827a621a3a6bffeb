"""What a study found: means, spreads and paired differences over seeds, as a table, a figure and JSON."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from epg.analysis.report import new_figure, publish
from epg.study.execute import Place
from epg.study.plan import Cell, Study
from epg.study.readability import rank_correlations
from epg.study.times import TIMES, training_times

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FLOOR = "_floor"
SHOWN = 3  # metrics in a table


@dataclass(frozen=True)
class Summary:
    """One metric of one arm over the seeds that are there."""

    key: str
    name: str
    better: str
    values: dict[int, float]
    """By seed."""
    mean: float
    spread: float | None
    """Sample standard deviation over seeds; None of one."""
    difference: float | None = None
    """Mean over common seeds of this arm minus the baseline."""
    difference_error: float | None = None
    """Its standard error, of seeds in pairs; None of one seed."""

    def text(self) -> str:
        """`mean ± spread (difference ± its error)`, as far as known."""
        own = f"{self.mean:.4g}" + ("" if self.spread is None else f" ± {self.spread:.2g}")
        if self.difference is None:
            return own
        error = "" if self.difference_error is None else f" ± {self.difference_error:.2g}"
        return f"{own} ({self.difference:+.3g}{error})"


Numbers = Mapping[tuple[str, int], Mapping[str, Any]]
"""Of the cells that are done, by arm and seed: as in receipts."""


def numbers_of(cells: Sequence[Cell], out: Path) -> Numbers:
    """What cells left when they ended, and how long they were trained."""
    found: dict[tuple[str, int], Mapping[str, Any]] = {}
    for cell in cells:
        place = Place.of(cell, out)
        if (result := place.content(place.result)) is not None:
            found[cell.arm, cell.seed] = result["numbers"] | training_times(cell, out)
    return found


def summaries(study: Study, numbers: Numbers) -> dict[str, list[Summary]]:
    """Of every arm with results, in the order of the file."""
    found: dict[str, dict[int, Mapping[str, Any]]] = {arm: {} for arm in study.arms}
    for (arm, seed), of_cell in numbers.items():
        found[arm][seed] = of_cell
    base = baseline_of(study)
    made: dict[str, list[Summary]] = {}
    for arm, results in found.items():
        keys = dict.fromkeys(key for numbers in results.values() for key in numbers)
        made[arm] = [_summary(key, results, found.get(base, {}) if arm != base else {}) for key in keys]
    return {arm: rows for arm, rows in made.items() if rows}


def baseline_of(study: Study) -> str:
    """The arm that is compared with: the one named, or the first that trains a generator, or the first."""
    generators = [name for name, arm in study.arms.items() if arm.stage != "pretraining"]
    return study.baseline or next(iter([*generators, *study.arms]))


def _summary(key: str, results: Mapping[int, Any], base: Mapping[int, Any]) -> Summary:
    values = {seed: float(numbers[key]["value"]) for seed, numbers in results.items() if key in numbers}
    about = next(numbers[key] for numbers in results.values() if key in numbers)
    mean, spread = mean_and_spread(list(values.values()))
    pairs = [values[s] - float(base[s][key]["value"]) for s in values if s in base and key in base[s]]
    difference, of_pairs = mean_and_spread(pairs) if pairs else (None, None)
    error = None if of_pairs is None else of_pairs / math.sqrt(len(pairs))
    return Summary(key, about["name"], about["better"], values, mean, spread, difference, error)


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def report(study: Study, cells: Sequence[Cell], out: Path, name: str, failed: Mapping[str, str]) -> None:
    """Writes NAME.json and NAME.png, and prints the table; nothing where no cell has ended."""
    numbers = numbers_of(cells, out)
    found = summaries(study, numbers)
    if not found:
        return
    unique = {(cell.arm, cell.seed): cell for cell in cells}
    ranks = rank_correlations(cells, numbers)
    content = {
        "description": study.description,
        "baseline": baseline_of(study),
        "seeds": study.seeds,
        "arms": {arm: {s.key: asdict(s) for s in rows} for arm, rows in found.items()},
        "cells": [
            {"arm": c.arm, "seed": c.seed, "folder": f"cells/{c.identity}", "judged": c.judged} for c in unique.values()
        ],
        "rank_correlations": [asdict(group) for group in ranks],
        "failed": dict(failed),
    }
    groups = [
        {a: rows for a, rows in found.items() if (study.arms[a].stage == "pretraining") == encoders}
        for encoders in (True, False)
    ]
    tables = [table(group) for group in groups if group]
    names = {s.key: s.name for rows in found.values() for s in rows}
    from rich.console import Console

    for shown in tables[:-1]:
        Console().print(shown)
    lines = [
        f"mean ± standard deviation over seeds (difference from {baseline_of(study)} ± its standard error over pairs); "
        "training: with that of what it begins with",
        *(f"rank correlation of linear probe and {names.get(r.metric, 'distance')}, {r.text()}" for r in ranks),
    ]
    publish(out, name, content, figure(groups[1] or groups[0]), tables[-1], *lines)


def shown_keys(group: Mapping[str, Sequence[Summary]]) -> list[str]:
    keys = dict.fromkeys(s.key for rows in group.values() for s in rows)
    return [key for key in keys if not key.endswith(FLOOR) and key not in TIMES][:SHOWN]


def table(group: Mapping[str, Sequence[Summary]]) -> Table:
    """A row for each arm; in brackets how far it is from the baseline."""
    keys = shown_keys(group)
    names = {s.key: f"{s.name} {'↓' if s.better == 'lower' else '↑'}" for rows in group.values() for s in rows}
    time = next((key for key in TIMES if any(s.key == key for rows in group.values() for s in rows)), "")
    shown = Table("arm", "seeds", *(names[key] for key in keys), TIMES.get(time, "training"))
    for arm, rows in group.items():
        by_key = {s.key: s.text() for s in rows}
        own = next((f"{s.mean:.3g}" for s in rows if s.key == time), "-")
        shown.add_row(arm, str(len(rows[0].values)), *(by_key.get(key, "-") for key in keys), own)
    return shown


def figure(group: Mapping[str, Sequence[Summary]]) -> "Figure":
    """The first metrics: a point for each seed, a line at the mean, an arm in each row."""
    keys = shown_keys(group)[:2]
    made = new_figure(3.5 + 3 * len(keys), 1.2 + 0.35 * len(group))
    axes = made.subplots(1, len(keys), sharey=True, squeeze=False)[0]
    for ax, key in zip(axes, keys, strict=True):
        for place, rows in enumerate(group.values()):
            summary = next((s for s in rows if s.key == key), None)
            if summary is not None:
                values = list(summary.values.values())
                ax.plot(values, [place] * len(values), "o", markersize=4, alpha=0.7)
                ax.plot([summary.mean] * 2, [place - 0.3, place + 0.3], "k-", linewidth=1.5)
                ax.set_xlabel(f"{summary.name} ({summary.better} is better)")
        ax.set_yticks(range(len(group)), list(group))
        ax.set_ylim(len(group) - 0.5, -0.5)
        ax.grid(axis="x", alpha=0.3)
    return made
