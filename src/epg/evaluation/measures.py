"""The words of `--metrics`, an entry for each: from it come help, checks, numbers with their errors, and the docs.

Light until a number is computed, as the command line reads the words here. A new metric is one entry of `METRICS`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from epg.errors import UserError
from epg.evaluation import FEATURES, LOGITS, SPATIAL

if TYPE_CHECKING:
    from epg.evaluation.estimates import Estimate, Evidence
    from epg.evaluation.receipt import ClassAccuracy, Number

FEWEST = 6  # images with five nearest neighbours


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
class Metric:
    """One word of `--metrics`."""

    about: str
    """What it is and who defines it so, for help and docs."""
    numbers: Sequence[Name]
    compute: "str | Callable[[Evidence], Sequence[Estimate]]"
    """An estimate for each of `numbers`; a word names a function of `estimates`, imported when it is needed."""
    output: str = FEATURES
    """Which output of the extractor it is computed from."""
    only: str = ""
    """The only extractor that it is defined with."""
    never: str = ""
    """An extractor with which it has another name, or no meaning."""
    needs: Literal["moments", "images", "labels", "held out"] = "moments"
    """Besides the samples' features: moments of the reference, features of its images, the samples' labels, or features
    of real images that the reference does not contain."""
    mean: Name | None = None
    """Of the mean of its first number over all extractors, where that is one."""

    @property
    def fewest(self) -> int:
        """Samples, and images of the reference, that it needs."""
        return FEWEST if self.needs == "images" else 2

    def fits(self, extractor: str) -> bool:
        return self.only in ("", extractor) and self.never != extractor

    def measure(self, e: "Evidence") -> "tuple[dict[str, Number], list[ClassAccuracy]]":
        """The numbers by key, and the classes where it tells them apart."""
        from epg.evaluation import estimates
        from epg.evaluation.receipt import Number

        compute = getattr(estimates, self.compute) if isinstance(self.compute, str) else self.compute
        numbers: dict[str, Number] = {}
        classes: list[ClassAccuracy] = []
        for name, found in zip(self.numbers, compute(e), strict=True):
            key, called = name.of(e.extractor.name)
            estimate: dict[str, Any] = {k: getattr(found, k) for k in ("value", "error", "error_from")}
            numbers[key] = Number(name=called, better=name.better, **estimate)
            classes += found.classes
        return numbers, classes

    def average(self, found: "Mapping[str, Number]") -> "dict[str, Number]":
        """The mean of its first number over extractors, by key; `found` by the extractor's name.

        All see the same samples, so that errors do not average out: theirs is the mean of the extractors' errors.
        """
        from epg.evaluation.receipt import Number

        if self.mean is None or not found:
            return {}
        errors = [n.error for n in found.values() if n.error is not None]
        known = len(errors) == len(found)
        mean = Number(
            name=f"{self.mean.name} ({', '.join(sorted(found))})",
            value=sum(n.value for n in found.values()) / len(found),
            error=sum(errors) / len(found) if known else None,
            error_from=next(iter(found.values())).error_from if known else "",
            better=self.mean.better,
        )
        return {self.mean.key: mean}


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
        "frechet",
        only="inception",
    ),
    "sfid": Metric(
        "Frechet distance of Inception's mixed_6/conv, 2023 (Nash et al. 2021, ADM)",
        [Name("sfid", "sFID", "lower")],
        "spatial_frechet",
        output=SPATIAL,
        only="inception",
    ),
    "is": Metric(
        "Inception score, logits without bias, mean over consecutive splits of 5000 (ADM)",
        [Name("inception_score", "Inception score", "higher")],
        "inception_score",
        output=LOGITS,
        only="inception",
    ),
    "pr": Metric("precision and recall, k = 3 (Kynkäänniemi et al. 2019, ADM)", PR, "precision_recall", needs="images"),
    "dc": Metric("density and coverage, k = 5 (Naeem et al. 2020)", DC, "density_coverage", needs="images"),
    "kid": Metric("KID, 100 subsets of 1000 (Binkowski et al. 2018)", [KID], "kernel_distance", needs="images"),
    "fd": Metric(
        "Frechet distance of other features than Inception's: FD-DINOv2, FD-EfficientNet",
        [Name("fd", "Frechet distance", "lower", FD_NAMES)],
        "frechet",
        never="inception",
    ),
    "fdr": Metric(
        "FDr: mean over all --features of the Frechet distance over that of as many held-out images; 1 is real",
        [Name("fd_ratio", "FD ratio", "lower", {"inception": ("fd_ratio_inception", "FD ratio (inception)")})],
        "frechet_ratio",
        needs="held out",
        mean=Name("fdr", "FDr", "lower"),
    ),
    "mmd": Metric(
        "Gaussian MMD of other features than Inception's: CMMD with clip (Jayasumana et al. 2024)",
        [MMD],
        "gaussian_mmd",
        never="inception",
        needs="images",
    ),
    "accuracy": Metric(
        "samples that a classifier recognises as their class, by class",
        [RECOGNISED],
        "accuracy",
        output=LOGITS,
        only="classifier",
        needs="labels",
    ),
}
USUAL = {"inception": ("fid", "sfid", "is", "pr"), "classifier": ("fd", "pr", "accuracy"), "clip": ("mmd",)}
OTHERWISE = ("fd", "pr")


def held_out_needed(words: Sequence[str] | None) -> bool:
    """Whether one of these metrics needs real images beside the reference."""
    return any(METRICS[word].needs == "held out" for word in words or ())


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
