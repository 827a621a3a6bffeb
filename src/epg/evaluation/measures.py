"""The words of `--metrics`: what each needs, and its numbers with their uncertainty."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from epg.errors import UserError
from epg.evaluation import metrics
from epg.evaluation.extractors.base import FEATURES, LOGITS, SPATIAL, Extractor
from epg.evaluation.metrics import Manifold, Moments
from epg.evaluation.receipt import Number
from epg.evaluation.reference import LARGEST_K, Statistics
from epg.randomness import permutation

GROUPS = 5  # of the jackknife
DEFAULTS = {
    "inception": ("fid", "sfid", "is", "pr"),
    "classifier": ("fd", "pr", "accuracy"),
    "clip": ("mmd",),
}
OTHERWISE = ("fd", "pr")
DISTANCES = {"dinov2": "FD-DINOv2", "efficientnet": "FD-EfficientNet"}  # Frechet distances that have a name

Features = NDArray[np.float32]
Numbers = dict[str, Number]


@dataclass(frozen=True)
class Evidence:
    """What one extractor says of the samples, and what it is compared with."""

    extractor: str
    outputs: Mapping[str, Features]
    reference: Statistics
    seed: int = 0

    @cached_property
    def manifold(self) -> Manifold:
        features = self.outputs[FEATURES]
        return Manifold(features, min(LARGEST_K, len(features) - 1))

    @property
    def reference_features(self) -> Features:
        assert self.reference.features is not None
        return self.reference.features

    def key(self, name: str) -> str:
        return name if self.extractor == "inception" else f"{name}_{self.extractor}"

    def label(self, name: str) -> str:
        return name if self.extractor == "inception" else f"{name} ({self.extractor})"


@dataclass(frozen=True)
class Measure:
    """One word of `--metrics`."""

    compute: Callable[[Evidence], Numbers]
    output: str = FEATURES
    """Which output of the extractor it is computed from."""
    only: str = ""
    """The only extractor that it is defined with."""
    never: str = ""
    """The extractor with which it has another name."""
    needs_images: bool = False
    """Whether the moments of the reference are not enough."""


def jackknife(statistic: Callable[[NDArray[np.intp]], float], count: int) -> float | None:
    """Standard error of a statistic of the samples with given indices, from leaving out a fifth of them in turn."""
    if count < 2 * GROUPS:
        return None
    return spread([statistic(np.setdiff1d(np.arange(count), group)) for group in groups_of(count)])


def groups_of(count: int) -> list[NDArray[np.intp]]:
    """Five equal groups of indices, dealt out at random: samples with labels in turn repeat with a period."""
    order = permutation(count, 0, "jackknife")
    return [np.sort(order[group::GROUPS]) for group in range(GROUPS)]


def spread(values: Sequence[float]) -> float:
    """Jackknife error from the values with one group left out each."""
    return math.sqrt((len(values) - 1) / len(values) * float(np.square(np.subtract(values, np.mean(values))).sum()))


JACKKNIFE = f"jackknife over {GROUPS} groups of the samples"


def frechet(features: Features, reference: Moments) -> tuple[float, float | None]:
    """Frechet distance and its standard error; the moments of each group are computed once."""
    if len(features) < 2 * GROUPS:
        return metrics.frechet_distance(metrics.statistics(features), reference), None
    groups = [metrics.statistics(features[group]) for group in groups_of(len(features))]
    without = [metrics.frechet_distance(metrics.merged(groups[:i] + groups[i + 1 :]), reference) for i in range(GROUPS)]
    return metrics.frechet_distance(metrics.merged(groups), reference), spread(without)


def _frechet_of(output: str, key: str, name: str) -> Callable[[Evidence], Numbers]:
    def compute(e: Evidence) -> Numbers:
        value, error = frechet(e.outputs[output], e.reference.moments[output])
        label = name if e.extractor == "inception" else DISTANCES.get(e.extractor, e.label(name))
        number = Number(name=label, value=value, error=error, error_from=JACKKNIFE, better="lower")
        return {e.key(key): number}

    return compute


def _inception_score(e: Evidence) -> Numbers:
    logits = e.outputs[LOGITS]
    score = metrics.inception_score(logits)
    splits = len(score.splits)
    if splits > 1:
        error: float | None = float(np.std(score.splits, ddof=1) / math.sqrt(splits))
        how = f"spread of {splits} splits of {metrics.SPLIT}"
    else:
        error, how = jackknife(lambda i: metrics.inception_score(logits[i]).value, len(logits)), JACKKNIFE
    number = Number(name="Inception score", value=score.value, error=error, error_from=how, better="higher")
    return {"inception_score": number}


def share(value: float, count: int) -> float:
    """Standard error of a share of `count`."""
    return math.sqrt(value * (1 - value) / count)


def _precision_recall(e: Evidence) -> Numbers:
    reference, samples = e.reference.manifold, e.manifold
    result = metrics.precision_recall(reference, samples)

    def number(name: str, value: float, count: int) -> Number:
        return Number(
            name=e.label(name), value=value, error=share(value, count), error_from="binomial", better="higher"
        )

    return {
        e.key("precision"): number("precision", result.precision, len(samples)),
        e.key("recall"): number("recall", result.recall, len(reference)),
    }


def _density_coverage(e: Evidence) -> Numbers:
    reference = e.reference.manifold
    result = metrics.density_coverage(reference, e.manifold)
    coverage_error = share(result.coverage, len(reference))
    return {
        e.key("density"): Number(
            name=e.label("density"),
            value=result.density,
            error=result.density_error,
            error_from="spread over the samples",
            better="higher",
        ),
        e.key("coverage"): Number(
            name=e.label("coverage"),
            value=result.coverage,
            error=coverage_error,
            error_from="binomial",
            better="higher",
        ),
    }


def _kid(e: Evidence) -> Numbers:
    result = metrics.kernel_inception_distance(e.reference_features, e.outputs[FEATURES], seed=e.seed)
    size = min(metrics.SUBSET_SIZE, len(e.reference_features), len(e.outputs[FEATURES]))
    independent = max(1, min(len(result.subsets), len(e.outputs[FEATURES]) // size))
    number = Number(
        name=e.label("KID") if e.extractor == "inception" else e.label("kernel distance"),
        value=result.value,
        error=float(np.std(result.subsets, ddof=1) / math.sqrt(independent)),
        error_from=f"spread of {len(result.subsets)} subsets of {size}, {independent} of them disjoint",
        better="lower",
    )
    return {e.key("kid" if e.extractor == "inception" else "kd"): number}


def _mmd(e: Evidence) -> Numbers:
    samples, reference = e.outputs[FEATURES], e.reference_features
    value = metrics.gaussian_mmd(reference, samples)
    error = jackknife(lambda i: metrics.gaussian_mmd(reference, samples[i]), len(samples))
    is_clip = e.extractor == "clip"
    name, key = ("CMMD", "cmmd") if is_clip else (e.label("Gaussian MMD"), e.key("mmd"))
    return {key: Number(name=name, value=value, error=error, error_from=JACKKNIFE, better="lower")}


MEASURES: dict[str, Measure] = {
    "fid": Measure(_frechet_of(FEATURES, "fid", "FID"), only="inception"),
    "sfid": Measure(_frechet_of(SPATIAL, "sfid", "sFID"), output=SPATIAL, only="inception"),
    "is": Measure(_inception_score, output=LOGITS, only="inception"),
    "fd": Measure(_frechet_of(FEATURES, "fd", "Frechet distance"), never="inception"),
    "pr": Measure(_precision_recall, needs_images=True),
    "dc": Measure(_density_coverage, needs_images=True),
    "kid": Measure(_kid, needs_images=True),
    "mmd": Measure(_mmd, never="inception", needs_images=True),
}
ACCURACY = "accuracy"  # needs labels instead of a reference: see `accuracy.py`
NAMES = (*MEASURES, ACCURACY)


def choose(words: Sequence[str] | None, extractors: Sequence[Extractor]) -> dict[str, list[str]]:
    """Which metrics to compute with each extractor; None asks for the usual ones of each.

    Raises UserError for an unknown word, and for one that no extractor can answer.
    """
    if words is None:
        return {e.name: list(DEFAULTS.get(e.name, OTHERWISE)) for e in extractors}
    chosen: dict[str, list[str]] = {e.name: [] for e in extractors}
    for word in words:
        if word not in NAMES:
            raise UserError(f"--metrics {word}: unknown; choose from {', '.join(NAMES)}")
        fitting = [e.name for e in extractors if fits(word, e.name)]
        if not fitting:
            raise UserError(f"--metrics {word}: {_why_not(word)}")
        for name in fitting:
            chosen[name].append(word)
    for name, words_of in chosen.items():
        if not words_of:
            raise UserError(f"--features {name}: none of --metrics {' '.join(words)} uses it; leave it out")
    return chosen


def fits(word: str, extractor: str) -> bool:
    """Whether a metric is computed with an extractor."""
    if word == ACCURACY:
        return extractor == "classifier"
    measure = MEASURES[word]
    return measure.only in ("", extractor) and measure.never != extractor


def _why_not(word: str) -> str:
    if word == ACCURACY:
        return "is what a classifier recognises; add --features classifier"
    if word == "fd":
        return "the Frechet distance of Inception's features is called fid"
    if MEASURES[word].only:
        return (
            f"is defined with Inception's features alone; use --features inception{' or ask for fd' * (word == 'fid')}"
        )
    return "does not apply to Inception's features; choose other --features"
