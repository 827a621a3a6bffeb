"""`epg sweep`: evaluates a generator over sampling settings and averages, and finds the best.

All points share labels, initial noise, reference and classifier, so that a difference between two of them is due to the
settings. Each is a receipt in a folder of its own: an interrupted sweep continues, and a finer one adds its points to
those that are there.
"""

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from epg.analysis.search import golden_section
from epg.checkpoint import export
from epg.checkpoint.checkpoint import find
from epg.checkpoint.loading import read
from epg.distributed import failing_together, rank
from epg.errors import ArtefactError, UserError
from epg.evaluation import receipt
from epg.evaluation.bench import Bench, Options, open_bench
from epg.evaluation.output import from_first
from epg.evaluation.periodic import default_metric
from epg.evaluation.receipt import Receipt
from epg.evaluation.sources import GeneratorSource
from epg.evaluation.subjects import Subject, open_subject
from epg.sampling import Request, changed
from epg.storage.artefact import digest_of
from epg.training.synthesis import synthesise

FOLDER = "sweep"
DIGITS = 4  # decimals of a golden-section search: finer settings are not worth a point of their own


@dataclass(frozen=True)
class Point:
    """Settings to sample with; None is the run's own."""

    ema: float | None = None
    width: float | None = None
    """Of a power-function average made after training, instead of `ema`."""
    steps: int | None = None
    guidance: float | None = None
    interval_low: float | None = None
    interval_high: float | None = None

    @property
    def weights(self) -> "Point":
        """The part that says which weights."""
        return Point(self.ema, self.width)

    @property
    def name(self) -> str:
        """Short, for files and labels."""
        return "_".join(f"{k}-{v:g}" for k, v in asdict(self).items() if v is not None) or "own"

    def changes(self, own_interval: tuple[float, float]) -> dict[str, Any]:
        """The sampling settings that differ from the run's."""
        changes: dict[str, Any] = {k: v for k in ("steps", "guidance") if (v := getattr(self, k)) is not None}
        if self.interval_low is not None or self.interval_high is not None:
            low, high = (
                own if mine is None else mine
                for own, mine in zip(own_interval, (self.interval_low, self.interval_high), strict=True)
            )
            changes["interval"] = (low, high)
        return changes


@dataclass(frozen=True)
class Axes:
    """Values to try of every setting; empty leaves the run's own."""

    ema: Sequence[float] = ()
    width: Sequence[float] = ()
    steps: Sequence[int] = ()
    guidance: Sequence[float] = ()
    interval_low: Sequence[float] = ()
    interval_high: Sequence[float] = ()

    @property
    def varied(self) -> list[str]:
        """Settings with several values."""
        return [f.name for f in fields(self) if len(getattr(self, f.name)) > 1]

    def grid(self) -> Iterator[Point]:
        """Every combination; points with the same weights follow each other."""
        weights = [Point(ema=e) for e in self.ema] + [Point(width=w) for w in self.width] or [Point()]
        rest = [getattr(self, name) or (None,) for name in ("steps", "guidance", "interval_low", "interval_high")]
        for of, (steps, guidance, low, high) in itertools.product(weights, itertools.product(*rest)):
            yield replace(of, steps=steps, guidance=guidance, interval_low=low, interval_high=high)


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
    _subject: tuple[Point, Subject] | None = None
    _bench: Bench | None = None

    def check(self, points: Sequence[Point]) -> None:
        """Raises UserError for a point that cannot be sampled, before any is: each may take an hour."""
        subject, _ = self._opened(points[0].weights)
        assert isinstance(subject.source, GeneratorSource)
        model = subject.source.model
        for point in points:
            changed(model, point.changes(model.sampling.interval))
        with failing_together():
            for ema in {point.ema for point in points} - {None, points[0].ema}:
                read(self.run, ema)

    def measure(self, point: Point, metric: str | None = None) -> float:
        """Evaluates a point, or reads its receipt; the metric (the smaller the better) on every process."""
        subject, place = self._opened(point.weights)
        own = subject.source
        assert isinstance(own, GeneratorSource)
        sampling = changed(own.model, point.changes(own.model.sampling.interval))
        source = replace(own, sampling=sampling)
        if self._bench is None:
            self._bench = open_bench(subject, str(self.run), self.reference, self.words, self.request.ema, self.options)
        file = self.out / f"{point.name}_{self._key(source, self._bench)}.json"
        known, found = self._known(file)
        if not known:
            found = self._bench.judge(replace(subject, source=source))
            self.fresh += 1
            with failing_together():
                if found is not None:
                    found.write(file)
        value = 0.0
        with failing_together():
            if found is not None:
                command = " ".join(["epg sample", str(place), *flags(point, sampling.interval)])
                self.results[point] = Result(point, found, command)
                chosen = metric or default_metric(found)
                number = metric_of(found, chosen)
                value = number if found.metrics[chosen].better == "lower" else -number
        return float(from_first(value))

    def _opened(self, weights: Point) -> tuple[Subject, Path]:
        """The generator with certain weights (kept until others are asked for), and where they are."""
        place = self.run if weights.width is None else self._synthesised(weights.width)
        if self._subject is None or self._subject[0] != weights:
            request = replace(self.request, ema=weights.ema)
            with failing_together():
                subject = open_subject(str(place), self.count, request, image_size=None, split="test")
                if not isinstance(subject.source, GeneratorSource):
                    raise UserError(f"{place}: no generator; a sweep takes a run folder, checkpoint or export")
            self._subject = weights, subject
        return self._subject[1], place

    def _synthesised(self, width: float) -> Path:
        """The export with a power-function average, made unless it is there for the newest step."""
        place = self.out / f"power-{width:g}"
        with failing_together():
            if rank() == 0:
                found = export.read(place) if export.is_export(place) else None
                if found is None or found.step != find(self.run).step:
                    synthesise(self.run, width, place)
        return place

    def _key(self, source: GeneratorSource, bench: Bench) -> str:
        """Whatever else the numbers depend on."""
        settings = {k: v for k, v in source.describe().items() if k not in ("nfe", "name")}
        told: dict[str, Any] = {
            "count": source.count,
            "samples": settings,
            "words": self.words,
            "seed": self.options.seed,
        }
        told["extractors"] = [(e.name, e.sha256) for e in bench.extractors]
        manifest = bench.against.manifest if bench.against is not None else {}
        told["reference"] = manifest.get("pixels") or (bench.against.sha256 if bench.against else "")
        told["kept"] = manifest.get("kept")
        return digest_of({}, json.dumps(from_first(told), sort_keys=True))[:8]

    def _known(self, file: Path) -> tuple[bool, Receipt | None]:
        """Whether an earlier sweep left a receipt, which all processes agree on, and on the first one the receipt."""
        found = None
        if rank() == 0 and file.is_file():
            try:
                found = receipt.read(file)
            except ArtefactError as error:
                print(f"note: {error}; evaluated again")
        return bool(from_first(found is not None)), found


def metric_of(found: Receipt, metric: str) -> float:
    """Raises UserError for a metric that was not computed."""
    if metric not in found.metrics:
        raise UserError(f"--metric {metric}: not measured; choose from {', '.join(found.metrics)}")
    return found.metrics[metric].value


def flags(point: Point, interval: tuple[float, float]) -> list[str]:
    """As `epg sample` and `epg evaluate` take them; weights of a width are a folder instead."""
    words = [f"--{k} {getattr(point, k):g}" for k in ("ema", "steps", "guidance") if getattr(point, k) is not None]
    if point.interval_low is not None or point.interval_high is not None:
        words.append(f"--interval {interval[0]:g} {interval[1]:g}")
    return words


def search(sweep: Sweep, axes: Axes, metric: str | None, tolerance: float) -> None:
    """Golden section over the one setting that has a range, at every value of the others.

    Raises UserError unless exactly one continuous setting has two values, the ends of the range.
    """
    wide = [name for name in axes.varied if name not in ("steps", "ema")]
    if len(axes.varied) != 1 or len(wide) != 1 or len(getattr(axes, wide[0])) != 2:
        raise UserError(
            "--golden: needs the two ends of one range, such as --guidance 1 4 (or --width, --interval-low, "
            "--interval-high), and one value of everything else"
        )
    name = wide[0]
    low, high = sorted(getattr(axes, name))

    def f(x: float) -> float:
        at: dict[str, Any] = {name: (round(x, DIGITS),)}
        (point,) = replace(axes, **at).grid()
        return sweep.measure(point, metric)

    golden_section(f, low, high, tolerance)
