"""`epg sweep`: evaluates a generator over sampling settings and averages, and finds the best.

All points share labels, initial noise, reference and classifier, so that a difference between two of them is due to the
settings. Each is a receipt in a folder of its own: an interrupted sweep continues, and a finer one adds its points to
those that are there.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from epg.analysis.sweep_points import Axes, Point, flags
from epg.checkpoint import export
from epg.checkpoint.checkpoint import find
from epg.checkpoint.loading import Trained, open_weights
from epg.distributed import failing_together, from_first, rank
from epg.errors import UserError
from epg.evaluation import receipt
from epg.evaluation.jury import Jury, Options, open_jury
from epg.evaluation.receipt import Number, Receipt, default_metric
from epg.evaluation.sources import GeneratorSource
from epg.evaluation.subjects import DEFAULT_COUNT, Subject, generated
from epg.pipeline.folder import Saved
from epg.sampling import Request, changed
from epg.storage.artefact import digest_of
from epg.training.synthesis import synthesise

FOLDER = "sweep"
DIGITS = 4  # decimals of a search: finer settings are not worth a point of their own


@dataclass(frozen=True)
class Result:
    """A point and what was measured there."""

    point: Point
    receipt: Receipt
    command: str
    """What draws samples with these settings."""


@dataclass
class Sweep:
    """A run under evaluation at point after point; every process has one and calls it alike."""

    run: Path
    request: Request
    count: int | None
    reference: str | None
    words: Sequence[str] | None
    options: Options
    out: Path
    results: dict[Point, Result] = field(default_factory=dict)
    """On the first process."""
    fresh: int = 0
    """Points that were not in the folder already."""
    _run: Trained | Saved | None = None
    _subjects: dict[Point, Subject] = field(default_factory=dict)
    """The one with the weights of the last point."""
    _jury: Jury | None = None

    def check(self, points: Sequence[Point]) -> None:
        """Raises UserError for a point that cannot be sampled, before any is: each may take an hour."""
        model = self._opened(points[0].weights).opened.model
        for point in points:
            changed(model, point.changes(model.sampling.interval, model.noise.sigma_max))
        with failing_together():
            for ema in {point.ema for point in points} - {None, points[0].ema}:
                self._weights(Point(ema))

    def measure(self, point: Point, metric: str | None = None) -> float:
        """Evaluates a point, or reads its receipt; the metric (the smaller the better) on every process."""
        own = self._opened(point.weights)
        model = own.opened.model
        sampling = changed(model, point.changes(model.sampling.interval, model.noise.sigma_max))
        source = replace(own, opened=replace(own.opened, sampling=sampling))
        subject = replace(self._subjects[point.weights], source=source)
        if self._jury is None:
            self._jury = open_jury(subject, str(self.run), self.reference, self.words, self.request.ema, self.options)
        file = self.out / f"{point.name}_{self._key(source, self._jury)}.json"
        found = receipt.intact(file) if rank() == 0 else None
        if not from_first(found is not None):
            found = self._jury.judge(subject)
            self.fresh += 1
            with failing_together():
                if found is not None:
                    found.write(file)
        value = 0.0
        with failing_together():
            if found is not None:
                command = " ".join(["epg sample", str(self._place(point)), *flags(point, sampling)])
                self.results[point] = Result(point, found, command)
                number = metric_of(found, metric or default_metric(found))
                value = number.value if number.better == "lower" else -number.value
        return float(from_first(value))

    def _opened(self, weights: Point) -> GeneratorSource:
        """The generator with certain weights, which is kept until others are asked for."""
        if weights not in self._subjects:
            with failing_together():
                if weights.width is not None and rank() == 0:
                    self._synthesise(weights.width)
            with failing_together():
                request = replace(self.request, count=self.count or DEFAULT_COUNT)
                subject = generated(str(self._place(weights)), request, self._weights(weights))
            self._subjects = {weights: subject}
        source = self._subjects[weights].source
        assert isinstance(source, GeneratorSource)
        return source

    def _place(self, weights: Point) -> Path:
        return self.run if weights.width is None else self.out / f"power-{weights.width:g}"

    def _weights(self, weights: Point) -> Trained | Saved:
        """The weights themselves; the run's checkpoint is verified once."""
        if weights.width is not None:
            return open_weights(self._place(weights))
        if self._run is None:
            self._run = open_weights(self.run)
        if weights.ema is None:
            return self._run
        return self._run.other(weights.ema) if isinstance(self._run, Trained) else open_weights(self.run, weights.ema)

    def _synthesise(self, width: float) -> None:
        """Makes the export with a power-function average, unless it is there for the newest step."""
        place = self._place(Point(width=width))
        found = export.read(place) if export.is_export(place) else None
        if found is None or found.step != find(self.run).step:
            synthesise(self.run, width, place)

    def _key(self, source: GeneratorSource, jury: Jury) -> str:
        """Whatever else the numbers depend on."""
        against = jury.against
        told: dict[str, Any] = {
            "count": source.count,
            "samples": {k: v for k, v in source.describe().items() if k not in ("nfe", "name")},
            "words": self.words,
            "seed": self.options.seed,
            "extractors": [(e.name, e.sha256) for e in jury.extractors],
            "reference": against and (against.manifest.get("pixels") or against.sha256),
            "kept": against and against.manifest.get("kept"),
        }
        return digest_of({}, json.dumps(from_first(told), sort_keys=True))[:8]


def metric_of(found: Receipt, metric: str) -> Number:
    """Raises UserError for a metric that was not computed."""
    if metric not in found.metrics:
        raise UserError(f"--metric {metric}: not measured; choose from {', '.join(found.metrics)}")
    return found.metrics[metric]


def search(sweep: Sweep, axes: Axes, metric: str | None, tolerance: float) -> None:
    """Golden section and parabolas (Brent) over the one setting that has a range; both of its ends are tried as well.

    Raises UserError unless exactly one continuous setting has two values, the ends of the range.
    """
    from scipy.optimize import minimize_scalar

    wide = [name for name in axes.varied if name not in ("steps", "ema")]
    one_range = len(axes.varied) == len(wide) == 1 and len(getattr(axes, wide[0])) == 2
    if not one_range or (axes.between and tuple(axes.steps or (2,)) != (2,)):
        raise UserError(
            "--golden: needs the two ends of one range, such as --guidance 1 4 (or --width, --interval-low, "
            "--interval-high, --between for two steps), and one value of everything else"
        )
    name = wide[0]
    low, high = sorted(getattr(axes, name))

    def f(x: float) -> float:
        at: dict[str, Any] = {name: (round(float(x), DIGITS),)}
        (point,) = replace(axes, **at).grid()
        return sweep.measure(point, metric)

    f(low), f(high)  # a minimum at the edge is then found, and can be told as one
    # It ends where the interval is 4/3 of `xatol` wide.
    minimize_scalar(f, bounds=(low, high), method="bounded", options={"xatol": 0.75 * tolerance})
