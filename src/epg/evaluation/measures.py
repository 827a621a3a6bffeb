"""The words of `--metrics`, an entry for each: from it come help, checks, numbers with their errors, and the docs.

Light until a number is computed, as the command line reads the words here. A new metric is one entry of `METRICS`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from epg.errors import UserError
from epg.evaluation import FEATURES, LOGITS, SPATIAL

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from epg.evaluation.extractors.base import Extractor
    from epg.evaluation.metrics import Manifold
    from epg.evaluation.receipt import ClassAccuracy, Number
    from epg.evaluation.reference import Statistics

FEWEST = 6  # images with five nearest neighbours


class Estimate(NamedTuple):
    """A value, its standard error from the finite number of samples, and how that was estimated."""

    value: float
    error: float | None
    error_from: str
    classes: Sequence["ClassAccuracy"] = ()
    """The same, class by class, where there is such a thing."""


class Name(NamedTuple):
    """Of one number: its key in receipts and what people call it."""

    key: str
    name: str
    better: Literal["lower", "higher"]
    special: dict[str, tuple[str, str]] = {}  # noqa: RUF012
    """Key and name with certain features; with others than Inception's, the usual ones carry the features' name."""

    def of(self, extractor: str) -> tuple[str, str]:
        own = (self.key, self.name) if extractor == "inception" else None
        return self.special.get(extractor) or own or (f"{self.key}_{extractor}", f"{self.name} ({extractor})")


@dataclass(frozen=True)
class Evidence:
    """What one extractor says of the samples, and what it is compared with."""

    extractor: "Extractor"
    outputs: "dict[str, NDArray[np.float32]]"
    """By output, (N, D) of the samples."""
    reference: "Statistics"
    labels: "NDArray[np.int64] | None" = None
    """(N,) in the extractor's classes, for metrics that need them."""
    seed: int = 0

    @property
    def features(self) -> "NDArray[np.float32]":
        return self.outputs[FEATURES]

    @property
    def reference_features(self) -> "NDArray[np.float32]":
        assert self.reference.features is not None
        return self.reference.features

    @cached_property
    def manifold(self) -> "Manifold":
        from epg.evaluation.reference import manifold_of

        return manifold_of(self.features)


@dataclass(frozen=True)
class Metric:
    """One word of `--metrics`."""

    about: str
    """What it is and who defines it so, for help and docs."""
    numbers: Sequence[Name]
    compute: Callable[[Evidence], Sequence[Estimate]]
    """An estimate for each of `numbers`."""
    output: str = FEATURES
    """Which output of the extractor it is computed from."""
    only: str = ""
    """The only extractor that it is defined with."""
    never: str = ""
    """An extractor with which it has another name, or no meaning."""
    needs: Literal["moments", "images", "labels"] = "moments"
    """Besides the samples' features: moments of the reference, features of its images, or the samples' labels."""

    @property
    def fewest(self) -> int:
        """Samples, and images of the reference, that it needs."""
        return FEWEST if self.needs == "images" else 2

    def fits(self, extractor: str) -> bool:
        return self.only in ("", extractor) and self.never != extractor

    def measure(self, e: Evidence) -> "tuple[dict[str, Number], list[ClassAccuracy]]":
        """The numbers by key, and the classes where it tells them apart."""
        from epg.evaluation.receipt import Number

        numbers: dict[str, Number] = {}
        classes: list[ClassAccuracy] = []
        for name, found in zip(self.numbers, self.compute(e), strict=True):
            key, called = name.of(e.extractor.name)
            estimate: dict[str, Any] = {k: getattr(found, k) for k in ("value", "error", "error_from")}
            numbers[key] = Number(name=called, better=name.better, **estimate)
            classes += found.classes
        return numbers, classes


def frechet(output: str) -> Callable[[Evidence], Sequence[Estimate]]:
    def compute(e: Evidence) -> Sequence[Estimate]:
        from epg.evaluation.metrics import uncertainty

        value, error = uncertainty.frechet(e.outputs[output], e.reference.moments[output])
        return [Estimate(value, error, uncertainty.JACKKNIFE)]

    return compute


def inception_score(e: Evidence) -> Sequence[Estimate]:
    import numpy as np

    from epg.evaluation import metrics
    from epg.evaluation.metrics.uncertainty import JACKKNIFE, jackknife

    logits = e.outputs[LOGITS]
    score = metrics.inception_score(logits)
    splits = len(score.splits)
    if splits > 1:
        error = float(np.std(score.splits, ddof=1) / splits**0.5)
        return [Estimate(score.value, error, f"spread of {splits} splits of {metrics.SPLIT}")]
    error_of_one = jackknife(lambda i: metrics.inception_score(logits[i]).value, len(logits))
    return [Estimate(score.value, error_of_one, JACKKNIFE)]


def precision_recall(e: Evidence) -> Sequence[Estimate]:
    from epg.evaluation import metrics

    found = metrics.precision_recall(e.reference.manifold, e.manifold)
    return [share(found.precision, len(e.manifold)), share(found.recall, len(e.reference.manifold))]


def density_coverage(e: Evidence) -> Sequence[Estimate]:
    from epg.evaluation import metrics

    found = metrics.density_coverage(e.reference.manifold, e.manifold)
    density = Estimate(found.density, found.density_error, "spread over the samples")
    return [density, share(found.coverage, len(e.reference.manifold))]


def kernel_distance(e: Evidence) -> Sequence[Estimate]:
    import numpy as np

    from epg.evaluation import metrics

    found = metrics.kernel_inception_distance(e.reference_features, e.features, seed=e.seed)
    size = min(metrics.SUBSET_SIZE, len(e.reference_features), len(e.features))
    disjoint = max(1, min(len(found.subsets), len(e.features) // size))
    error = float(np.std(found.subsets, ddof=1) / disjoint**0.5)
    return [
        Estimate(found.value, error, f"spread of {len(found.subsets)} subsets of {size}, {disjoint} of them disjoint")
    ]


def gaussian_mmd(e: Evidence) -> Sequence[Estimate]:
    from epg.evaluation import metrics
    from epg.evaluation.metrics.uncertainty import JACKKNIFE, jackknife

    samples, real = e.features, e.reference_features
    error = jackknife(lambda i: metrics.gaussian_mmd(real, samples[i]), len(samples))
    return [Estimate(metrics.gaussian_mmd(real, samples), error, JACKKNIFE)]


def accuracy(e: Evidence) -> Sequence[Estimate]:
    from epg.evaluation.metrics.accuracy import recognised

    assert e.labels is not None
    value, classes = recognised(e.outputs[LOGITS], e.labels, e.extractor.class_names)
    return [share(value, len(e.labels))._replace(classes=classes)]


def share(value: float, count: int) -> Estimate:
    """A share of `count` things that are or are not so."""
    return Estimate(value, (value * (1 - value) / count) ** 0.5, "binomial")


FD_NAMES = {name.lower(): (f"fd_{name.lower()}", f"FD-{name}") for name in ("DINOv2", "EfficientNet")}
PR = Name("precision", "precision", "higher"), Name("recall", "recall", "higher")
DC = Name("density", "density", "higher"), Name("coverage", "coverage", "higher")
KID = Name("kd", "kernel distance", "lower", {"inception": ("kid", "KID")})
MMD = Name("mmd", "Gaussian MMD", "lower", {"clip": ("cmmd", "CMMD")})
RECOGNISED = Name("accuracy", "recognised", "higher", {"classifier": ("accuracy", "recognised (classifier)")})
METRICS: dict[str, Metric] = {
    "fid": Metric(
        "Frechet distance of Inception's pool_3, 2048 (Heusel et al. 2017, ADM)",
        [Name("fid", "FID", "lower")],
        frechet(FEATURES),
        only="inception",
    ),
    "sfid": Metric(
        "Frechet distance of Inception's mixed_6/conv, 2023 (Nash et al. 2021, ADM)",
        [Name("sfid", "sFID", "lower")],
        frechet(SPATIAL),
        output=SPATIAL,
        only="inception",
    ),
    "is": Metric(
        "Inception score, logits without bias, mean over consecutive splits of 5000 (ADM)",
        [Name("inception_score", "Inception score", "higher")],
        inception_score,
        output=LOGITS,
        only="inception",
    ),
    "pr": Metric("precision and recall, k = 3 (Kynkäänniemi et al. 2019, ADM)", PR, precision_recall, needs="images"),
    "dc": Metric("density and coverage, k = 5 (Naeem et al. 2020)", DC, density_coverage, needs="images"),
    "kid": Metric("KID, 100 subsets of 1000 (Binkowski et al. 2018)", [KID], kernel_distance, needs="images"),
    "fd": Metric(
        "Frechet distance of other features than Inception's: FD-DINOv2, FD-EfficientNet",
        [Name("fd", "Frechet distance", "lower", FD_NAMES)],
        frechet(FEATURES),
        never="inception",
    ),
    "mmd": Metric(
        "Gaussian MMD of other features than Inception's: CMMD with clip (Jayasumana et al. 2024)",
        [MMD],
        gaussian_mmd,
        never="inception",
        needs="images",
    ),
    "accuracy": Metric(
        "samples that a classifier recognises as their class, by class",
        [RECOGNISED],
        accuracy,
        output=LOGITS,
        only="classifier",
        needs="labels",
    ),
}
USUAL = {"inception": ("fid", "sfid", "is", "pr"), "classifier": ("fd", "pr", "accuracy"), "clip": ("mmd",)}
OTHERWISE = ("fd", "pr")


def known(words: Sequence[str]) -> Sequence[str]:
    """The words. Raises UserError for an unknown one."""
    for word in words:
        if word not in METRICS:
            raise UserError(f"--metrics {word}: unknown; choose from {', '.join(METRICS)}")
    return words


def choose(words: Sequence[str] | None, extractors: Sequence[str]) -> dict[str, dict[str, Metric]]:
    """Which metrics to compute with each extractor, by word; None asks for the usual ones of each.

    Raises UserError for an unknown word, and for one that no extractor can answer.
    """
    if words is None:
        return {name: {word: METRICS[word] for word in USUAL.get(name, OTHERWISE)} for name in extractors}
    for word in known(words):
        metric = METRICS[word]
        if metric.only and metric.only not in extractors:
            kind = metric.only.capitalize()
            raise UserError(f"--metrics {word}: is defined with {kind}'s features alone; use --features {metric.only}")
        if not any(metric.fits(name) for name in extractors):
            other = f"is called fid with {metric.never}'s features" if word == "fd" else f"not with {metric.never}"
            raise UserError(f"--metrics {word}: {other}; use other --features")
    chosen = {name: {word: METRICS[word] for word in words if METRICS[word].fits(name)} for name in extractors}
    for name, of in chosen.items():
        if not of:
            raise UserError(f"--features {name}: none of --metrics {' '.join(words)} uses it; leave it out")
    return chosen


def help_text() -> str:
    """For `--metrics`, and a line for each in the docs."""
    return "".join(f"\n{word}: {metric.about}" for word, metric in METRICS.items())
