"""Judge images against a reference: features of all of them, the chosen metrics, a receipt."""

import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epg.circumstances import circumstances
from epg.distributed import failing_together, rank
from epg.errors import UserError
from epg.evaluation import LOGITS
from epg.evaluation.estimates import Evidence
from epg.evaluation.extraction import Collector, check_shapes, extract
from epg.evaluation.extractors.extractor import Extractor
from epg.evaluation.measures import METRICS, Metric, choose
from epg.evaluation.receipt import ClassAccuracy, Number, Receipt
from epg.evaluation.reference import Reference
from epg.evaluation.sources import ImageSource, Progress, labels_among

FEW = 10_000  # samples, below which Frechet distances are visibly biased


def evaluate(
    samples: ImageSource,
    reference: Reference | None,
    extractors: Sequence[Extractor],
    words: Sequence[str] | None = None,
    *,
    batch_size: int = 64,
    seed: int = 0,
    on_progress: Progress | None = None,
    warnings: Sequence[str] = (),
    held_out: Mapping[str, NDArray[np.float32]] | None = None,
) -> Receipt | None:
    """Every process must call it; the first one gets the receipt, the others None.

    Args:
        reference: on the first process; it must have statistics of every extractor.
        words: metrics (`measures.METRICS`); None takes the usual ones of each extractor.
        batch_size: images that a process reads or samples at once; no number depends on it.
        seed: of the subsets of KID.
        warnings: what the receipt should repeat.
        held_out: by extractor features (M, D) of real images that the reference does not contain, on the first process.

    Raises:
        UserError: metrics that do not fit extractors, samples or reference.
        DataError: labels that are no classes of the reference.
    """
    started = time.monotonic()
    chosen = choose(words, [extractor.name for extractor in extractors])
    if words is None and samples.labels is None:
        chosen = {name: {w: m for w, m in of.items() if m.needs != "labels"} for name, of in chosen.items()}
    with failing_together():
        _check(samples, reference, extractors, chosen, held_out or {})
    collector = Collector()
    pixels = extract(samples, extractors, collector, batch_size=batch_size, on_progress=on_progress)
    if pixels is None:
        return None
    assert reference is not None
    numbers, classes = _measured(samples, reference, extractors, chosen, collector, seed, held_out or {})
    told = {"count": samples.count, "shape": list(samples.shape), "pixels": pixels}
    return Receipt(
        metrics=numbers,
        samples={**told, **samples.describe()},
        reference={"name": reference.name, "sha256": reference.sha256, **reference.manifest},
        extractors={extractor.name: extractor.describe() for extractor in extractors},
        classes=classes,
        warnings=[*warnings, *_notes(samples, reference, extractors, numbers)],
        seed=seed,
        seconds=round(time.monotonic() - started, 3),
        **circumstances(),
    )


def _measured(
    samples: ImageSource,
    reference: Reference,
    extractors: Sequence[Extractor],
    chosen: dict[str, dict[str, Metric]],
    collector: Collector,
    seed: int,
    held_out: Mapping[str, NDArray[np.float32]],
) -> tuple[dict[str, Number], list[ClassAccuracy]]:
    """The numbers by key, and the classes where a metric tells them apart."""
    numbers: dict[str, Number] = {}
    classes: list[ClassAccuracy] = []
    first: dict[str, dict[str, Number]] = {}  # by word and extractor
    for extractor in extractors:
        name, metrics = extractor.name, chosen[extractor.name]
        labels = _labels(samples, extractor).numpy() if any(m.needs == "labels" for m in metrics.values()) else None
        statistics, outputs = reference.statistics[name], collector.outputs(name)
        evidence = Evidence(extractor, outputs, statistics, labels, held_out.get(name), seed)
        for word, metric in metrics.items():
            found, by_class = metric.measure(evidence)
            numbers, classes = numbers | found, classes + by_class
            first.setdefault(word, {})[name] = next(iter(found.values()))
    for word, by_extractor in first.items():
        numbers |= METRICS[word].average(by_extractor)
    return numbers, classes


def _labels(samples: ImageSource, extractor: Extractor) -> Any:
    return labels_among(samples, extractor.class_names, "the reference")


def _check(
    samples: ImageSource,
    reference: Reference | None,
    extractors: Sequence[Extractor],
    chosen: dict[str, dict[str, Metric]],
    held_out: Collection[str],
) -> None:
    """Everything that can be refused before hours of sampling."""
    least = max(metric.fewest for of in chosen.values() for metric in of.values())
    if samples.count < least:
        raise UserError(f"--count {samples.count}: these metrics need at least {least} images")
    for extractor in extractors:
        for word, metric in chosen[extractor.name].items():
            if metric.needs == "labels":
                if samples.labels is None:
                    raise UserError(
                        f"--metrics {word}: these samples have no labels. Judge the run itself, or the samples.npz "
                        "that epg sample --npz writes, which keeps them."
                    )
                _labels(samples, extractor)
    check_shapes(samples, extractors)
    if rank() != 0:
        return
    assert reference is not None
    size, side = reference.manifest.get("image_size"), samples.shape[1]
    if size is not None and size != side:
        raise UserError(
            f"--reference {reference.name}: made of {size}x{size} images, the samples are {side}x{side}. Distances "
            "between sizes measure the scaling; use a reference of the samples' size."
        )
    for extractor in extractors:
        lacking = [
            w for w, m in chosen[extractor.name].items() if m.needs == "held out" and extractor.name not in held_out
        ]
        if lacking:
            raise UserError(f"--metrics {lacking[0]}: needs real images that the reference does not contain")
        _fits(reference, extractor, list(chosen[extractor.name].values()))


def _fits(reference: Reference, extractor: Extractor, metrics: Sequence[Metric]) -> None:
    """Raises UserError where a reference lacks what the metrics need, or has it from other weights."""
    name, where = extractor.name, f"--reference {reference.name}"
    statistics = reference.statistics.get(name)
    if statistics is None:
        raise UserError(f"{where}: has no statistics of {name}, only of {', '.join(reference.statistics) or 'nothing'}")
    if statistics.sha256 not in ("", extractor.sha256):
        raise UserError(
            f"{where}: its {name} features are those of other weights (sha256 {statistics.sha256[:12]}..., here "
            f"{extractor.sha256[:12]}...); make the reference again with these"
        )
    if statistics.sha256 and statistics.preprocessing != extractor.preprocessing:
        raise UserError(
            f"{where}: its {name} features were computed with other preprocessing ({statistics.preprocessing}; now "
            f"{extractor.preprocessing}); make the reference again"
        )
    missing = {m.output for m in metrics if m.needs in ("moments", "held out")} - statistics.moments.keys() - {LOGITS}
    if missing:
        raise UserError(f"{where}: has no statistics of {name}'s {', '.join(missing)} output")
    fewest = max((m.fewest for m in metrics if m.needs == "images"), default=0)
    if fewest and statistics.features is None:
        raise UserError(
            f"{where}: has mean and covariance but no images; precision, recall, density, coverage and kernel "
            "distances need them. Leave these out of --metrics, or use another reference."
        )
    if statistics.features is not None and len(statistics.features) < fewest:
        raise UserError(f"{where}: has {len(statistics.features)} images; these metrics need at least {fewest}")


def _notes(
    samples: ImageSource, reference: Reference, extractors: Sequence[Extractor], numbers: dict[str, Number]
) -> list[str]:
    """What nobody should overlook."""
    notes = [extractor.note for extractor in extractors if extractor.note]
    colours = {1: "grey", 3: "in colour"}
    channels, of_reference = samples.shape[0], reference.manifest.get("channels", samples.shape[0])
    if channels != of_reference:
        notes.append(f"the samples are {colours[channels]}, the reference is {colours[of_reference]}")
    if enlarged := reference.manifest.get("enlarged"):
        notes.append(
            f"{enlarged} of the {reference.manifest['count']} images of the reference were smaller than "
            f"{samples.shape[1]}x{samples.shape[2]} and have been enlarged: blurred samples look right beside them"
        )
    if samples.count < FEW and any(key.split("_")[0] in ("fid", "sfid", "fd") for key in numbers):
        notes.append(
            f"{samples.count} samples: Frechet distances are biased upwards by small sets; compare only with numbers "
            "from as many samples (papers use 50,000)"
        )
    return notes
