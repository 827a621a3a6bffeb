"""The sections of numbers over training: what the log and the receipts along the way say."""

import math
from collections.abc import Iterator, Sequence

from markupsafe import Markup

from epg.evaluation.linear import LEVELS, MEAN, PREFIX
from epg.report.charts import Line, Point, chart
from epg.report.parts import Section
from epg.report.run_files import RunFiles

QUARTERS = ("cleanest", "second", "third", "noisiest")
GAUGE = "feature_std/"
FLOOR = "_floor"
MOST_METRICS = 6  # charts of metrics over steps
HEALTH = {
    "images_per_second": "images per second",
    "grad_norm": "norm of the gradient, before clipping",
    "lr": "learning rate",
}
EVEN = ("images_per_second", "lr")

Runs = Sequence[RunFiles]


def losses(runs: Runs) -> Section:
    """Every term, of the runs that have it; losses of different stages are never in one chart."""
    section = Section("Losses", "Means over the steps since the line of the log before. Lower is better.")
    stages = dict.fromkeys(run.config.stage for run in runs)
    for stage in stages:
        of_stage = [run for run in runs if run.config.stage == stage]
        terms = list(dict.fromkeys(term for run in of_stage for term in run.terms))
        for term in terms if len(terms) > 2 else terms[:1]:  # one term alone is the loss
            title = f"{stage}: {term}" if len(stages) > 1 else term
            section.add(over_steps(title, runs, term, only=stage))
    return section


def over_steps(
    title: str, runs: Runs, name: str, level: tuple[str, float] | None = None, only: str | None = None
) -> Markup | None:
    """A chart of one number of the log, a line for each run, or for each of one stage."""
    lines = [Line(run.name, run.points(name) if only in (None, run.config.stage) else ()) for run in runs]
    return chart(title, lines, level=level, even=name in EVEN)


def by_level(runs: Runs) -> Section:
    section = Section(
        "Loss by noise level",
        "The images of a step by how noisy they were: four equally likely quarters. What falls at high levels is the "
        "content of an image, what falls at low ones its detail.",
    )
    for run in runs:
        names = run.by_level()
        lines = [Line(f"{QUARTERS[int(name[-1]) - 1]} quarter", run.points(name)) for name in names]
        term = names[0].partition("/")[0] if names else ""
        section.add(chart(f"{run.name}: {term}" if len(runs) > 1 else term, lines))
    return section


def linear(runs: Runs) -> Section:
    section = Section(
        "Against the best linear denoiser",
        "Denoising error on held-out images, divided by that of the best denoiser that knows only their mean and "
        "spectrum. Below 1 at every level is the first thing to reach.",
    )
    level = ("the best linear denoiser", 1.0)
    section.add(over_steps("mean over levels", runs, MEAN, level))
    lines = [Line(run.name, list(ratios(run))) for run in runs]
    section.add(chart("by level, newest", lines, x="noise level", log_x=True, level=level))
    return section


def ratios(run: RunFiles) -> Iterator[Point]:
    """By level: the newest of the log, or those of `epg denoising`."""
    logged = [line for line in run.log if MEAN in line]
    numbers = logged[-1] if logged else run.analysis("denoising").get("linear", {})
    for level in LEVELS:
        value = numbers.get(f"{PREFIX}{level:g}") if isinstance(numbers, dict) else None
        if isinstance(value, int | float) and math.isfinite(value):
            yield level, float(value)


def gauge(runs: Runs) -> Section:
    section = Section(
        "Spread of features",
        "Standard deviation over images of each channel of the encoder's CLS features, mean over channels: 1 where "
        "they spread over the whole sphere, 0 where all images look the same to the encoder, which is collapse.",
    )
    names = dict.fromkeys(name for run in runs for line in run.log[-1:] for name in line if name.startswith(GAUGE))
    for name in names:
        section.add(over_steps(f"at noise level {name.removeprefix(GAUGE)}", runs, name))
    return section


def quality(runs: Runs) -> Section:
    """Figure 7: what receipts along the way say."""
    section = Section(
        "Quality over training",
        "Samples of the averaged weights, judged along the way as receipts say; bars are standard errors. Few samples "
        "follow one run well, but their Frechet distances are higher than those of many.",
    )
    receipts = [r for run in runs for r in run.evaluations.values()]
    keys = dict.fromkeys(key for r in receipts for key in r.metrics if not key.endswith(FLOOR))
    along = [key for key in keys if any(sum(key in r.metrics for r in run.evaluations.values()) > 1 for run in runs)]
    for key in along[:MOST_METRICS]:
        lines = []
        for run in runs:
            found = [(step, r.metrics[key]) for step, r in run.evaluations.items() if key in r.metrics]
            points = [(float(step), number.value) for step, number in found]
            lines.append(Line(run.name, points, [number.error or 0.0 for _, number in found]))
        number = next(r.metrics[key] for r in receipts if key in r.metrics)
        floors = [r.metrics[key + FLOOR].value for r in receipts if key + FLOOR in r.metrics]
        level = ("real held-out images", floors[-1]) if floors else None
        section.add(chart(f"{number.name} ({number.better} is better)", lines, level=level))
    return section


def health(runs: Runs) -> Section:
    section = Section("Speed and health")
    for name, title in HEALTH.items():
        section.add(over_steps(title, runs, name))
    return section
