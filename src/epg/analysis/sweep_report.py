"""A sweep as table, curve and JSON, and its best settings as flags."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from epg.analysis.compare import CLEAR, FLOOR, clearly
from epg.analysis.compare_report import text, titled
from epg.analysis.report import curve, new_figure, publish
from epg.analysis.sweep import FOLDER, Result, Sweep, metric_of, search
from epg.analysis.sweep_points import Axes, Point
from epg.analysis.sweep_points import text as setting
from epg.distributed import processes
from epg.errors import UserError
from epg.evaluation.jury import Options
from epg.evaluation.receipt import default_metric
from epg.sampling import Request

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 5  # metrics in table and figure


def run_sweep(
    run: Path,
    axes: Axes,
    *,
    metric: str | None = None,
    golden: bool = False,
    tolerance: float = 0.05,
    count: int | None = None,
    reference: str | None = None,
    words: Sequence[str] | None = None,
    request: Request | None = None,
    options: Options | None = None,
    out: Path | None = None,
) -> list[Result] | None:
    """Evaluates every point and shows them; on the first process, the results, best first.

    Args:
        axes: values of the grid, or with `golden` the range to search to within `tolerance`.
        metric: key in the receipts by which the best is chosen; None is `default_metric`.
        count: as for `epg evaluate`, like `reference`, `words`, `request` and `options`; the same at every point.
    """
    points = list(dict.fromkeys(axes.grid()))
    if len(points) < 2:
        raise UserError("epg sweep: give several values of a setting, such as --guidance 1 1.5 2 or --steps 8 16 32")
    if not tolerance > 0:
        raise UserError(f"--tolerance {tolerance:g}: must be positive")
    with processes():
        folder = out or (run if (run / "checkpoints").is_dir() else run.parent) / FOLDER
        sweep = Sweep(run, request or Request(), count, reference, words, options or Options(), folder)
        sweep.check(points)
        if golden:
            search(sweep, axes, metric, tolerance)
        else:
            for point in points:
                sweep.measure(point, metric)
    if not sweep.results:
        return None
    return report(list(sweep.results.values()), axes, metric, folder, sweep.fresh)


def report(results: Sequence[Result], axes: Axes, metric: str | None, out: Path, fresh: int) -> list[Result]:
    """Prints the table and the best settings; writes `sweep.json` and `sweep.png`. Returns the results, best first."""
    metric = metric or default_metric(results[0].receipt)
    ranked = rank_by(results, metric)
    best = ranked[0]
    number = best.receipt.metrics[metric]
    metrics = [{key: n.model_dump() for key, n in r.receipt.metrics.items()} for r in ranked]
    points = [{**asdict(r.point), "command": r.command, "metrics": m} for r, m in zip(ranked, metrics, strict=True)]
    content = {"metric": metric, "better": number.better, "points": points}
    told = f"{len(results)} points, {fresh} of them new. Best {number.name}: {text(number)}, with\n  {best.command}"
    lines = told, *(f"note: {note}" for note in notes(ranked, axes, metric)), f"receipts in {out}"
    publish(out, "sweep", content, draw(results, axes, metric), table(results, axes, metric), *lines)
    return ranked


def rank_by(results: Sequence[Result], metric: str) -> list[Result]:
    """Best first."""
    sign = 1 if results[0].receipt.metrics[metric].better == "lower" else -1
    return sorted(results, key=lambda r: sign * metric_of(r.receipt, metric).value)


def notes(ranked: Sequence[Result], axes: Axes, metric: str) -> list[str]:
    """What one should know before believing the best point."""
    best, others = ranked[0], ranked[1:]
    found = []
    for name in axes.varied:
        value, values = getattr(best.point, name), getattr(axes, name)
        ends = value if isinstance(value, tuple) else (value,)
        if {min(values), max(values)} & {*ends}:
            named = f"--{name.replace('_', '-')}, {setting(value)}"
            found.append(f"the best {named}, is at the edge of what was tried: widen it")
    number = best.receipt.metrics[metric]
    if close := [r for r in others if not clearly(r.receipt.metrics[metric], number)]:
        found.append(
            f"{len(close)} more within {CLEAR:g} standard errors; all share noise and labels, so their "
            "order is surer than that, but confirm the best with another --seed or a larger --count"
        )
    return found


def order(point: Point) -> tuple[tuple[float, ...], ...]:
    """Sorts points as people read them."""
    return tuple(() if v is None else v if isinstance(v, tuple) else (v,) for v in asdict(point).values())


def shown_metrics(results: Sequence[Result], metric: str) -> list[str]:
    """The one that decides, and others."""
    keys = [key for key in results[0].receipt.metrics if not key.endswith(FLOOR)]
    return [metric, *(key for key in keys if key != metric)][:SHOWN]


def table(results: Sequence[Result], axes: Axes, metric: str) -> Table:
    """A row for each point, the best in bold."""
    metrics = shown_metrics(results, metric)
    shown = Table(*(name.replace("_", " ") for name in axes.varied), "NFE", *metrics)
    best = rank_by(results, metric)[0]
    for r in sorted(results, key=lambda r: order(r.point)):
        settings = ["-" if (v := getattr(r.point, name)) in (None, ()) else setting(v) for name in axes.varied]
        numbers = [text(r.receipt.metrics.get(key)) for key in metrics]
        nfe = r.receipt.samples.get("nfe")
        shown.add_row(*settings, "-" if nfe is None else f"{nfe:g}", *numbers, style="bold" if r is best else None)
    return shown


def draw(results: Sequence[Result], axes: Axes, metric: str) -> "Figure":
    """Each metric over the setting with most values, a line for each combination of the others; the best is marked."""
    across = max(axes.varied, key=lambda name: len({r.point.at(name) for r in results}))
    metrics = shown_metrics(results, metric)
    best = rank_by(results, metric)[0]
    figure = new_figure(3.6 * len(metrics), 3.4)
    for axis, key in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
        for label, line in lines(results, axes, across).items():
            numbers = [r.receipt.metrics[key] for r in line]
            x, errors = [r.point.at(across) or 0.0 for r in line], [n.error or 0.0 for n in numbers]
            curve(axis, x, [n.value for n in numbers], errors, label)
        if (value := best.point.at(across)) is not None:
            axis.axvline(value, color="grey", linewidth=0.8, linestyle=":")
        floor = best.receipt.metrics.get(key + FLOOR)
        if floor is not None:
            axis.axhline(floor.value, color="grey", linewidth=0.8, linestyle="--")
        axis.set_title(titled(best.receipt.metrics[key]), fontsize=9)
        axis.set(xlabel=across.replace("_", " "))
        if len(axes.varied) > 1:
            axis.legend(fontsize=7)
    return figure


def lines(results: Sequence[Result], axes: Axes, across: str) -> dict[str, list[Result]]:
    """Results that differ only in `across`, by a name of the rest, in the order of `across`."""
    grouped: dict[str, list[Result]] = {}
    rest = [name for name in axes.varied if name != across]
    for r in sorted(results, key=lambda r: order(r.point)):
        if r.point.at(across) is None:
            continue  # a width where decays are compared, or the other way round; one step where levels are
        told = [f"{n.replace('_', ' ')} {setting(v)}" for n in rest if (v := getattr(r.point, n)) is not None]
        if across == "between" and (further := (r.point.between or ())[1:]):
            told.append(f"then {setting(further)}")
        grouped.setdefault(", ".join(told), []).append(r)
    return grouped
