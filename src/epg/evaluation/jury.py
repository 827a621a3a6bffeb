"""What samples are judged with: features, reference and metrics, opened once for any number of judgements."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epg import progress
from epg.config.sections import DataConfig
from epg.data.pixels.rules import RULES, PixelRules, check_rules
from epg.distributed import failing_together, from_first, pick_device, rank
from epg.errors import UserError
from epg.evaluation import FEATURES, reference_files
from epg.evaluation.estimates import Evidence
from epg.evaluation.evaluate import evaluate
from epg.evaluation.extraction import Collector, extract
from epg.evaluation.extractors import IN_DOMAIN, Choice, choices, open_extractor
from epg.evaluation.extractors.extractor import Extractor
from epg.evaluation.independence import notes, refuse_no_judge
from epg.evaluation.measures import METRICS, choose, held_out_needed
from epg.evaluation.npz import NpzSource
from epg.evaluation.real import Real, open_real, with_fifth
from epg.evaluation.receipt import Number, Receipt
from epg.evaluation.reference import KEPT, Reference, make_reference
from epg.evaluation.sources import DatasetSource
from epg.evaluation.sources import Progress as Report
from epg.evaluation.subjects import Subject, some_of
from epg.storage.artefact import digest_of
from epg.storage.download import cache_folder

SEEN = "the held-out images are a fifth of those that the run was trained on; with a test split they would be new to it"
VERSION = "2"  # of what a cached reference says: raise it with every new entry of its manifest


@dataclass(frozen=True)
class Options:
    """What both verbs take."""

    features: Sequence[str] = ()
    """Words of `--features`; none asks for what fits the reference and needs no download."""
    inception: Path | None = None
    image_size: int | None = None
    split: str | None = None
    """Of a data set as reference; None is its training split, or the only one of a prepared set."""
    kept: int = KEPT
    seed: int = 0
    batch_size: int = 64
    device: str = "auto"
    pixels: Mapping[str, Any] = field(default_factory=dict)
    """Of `PixelRules`: how a data set that is not prepared is read, where it is not as the run read its own images."""
    cache: bool = True
    """Whether statistics of data sets are kept in the cache."""

    def __post_init__(self) -> None:
        for flag, value, least in (("--batch-size", self.batch_size, 1), ("--kept", self.kept, 2)):
            if value < least:
                raise UserError(f"{flag} {value}: must be at least {least}")

    def rules(self, trained: PixelRules = RULES) -> PixelRules:
        """How pixels are read: by the flags, else as in training. Raises UserError for what is no rule."""
        rules = replace(trained, **self.pixels)
        check_rules(rules)
        return rules


@dataclass(frozen=True)
class Jury:
    """Extractors and reference, opened once, on which several sets of samples are judged alike."""

    real: Real | None
    extractors: Sequence[Extractor]
    against: Reference | None
    words: Sequence[str] | None
    options: Options
    real_features: dict[tuple[int, str], NDArray[np.float32]] = field(default_factory=dict)
    """Of so many held-out images by an extractor, on the first process; computed when they are first needed."""

    def judge(self, subject: Subject) -> Receipt | None:
        """Every process must call it; the first one gets the receipt."""
        count = subject.source.count
        floors = self.held_out(count, [e for e in self.extractors if e.name in IN_DOMAIN])
        with reporting("evaluating") as report:
            receipt = evaluate(
                subject.source,
                self.against,
                self.extractors,
                self.words,
                batch_size=self.options.batch_size,
                seed=self.options.seed,
                on_progress=report,
                warnings=[*subject.warnings, *self.doubts(subject)],
                held_out=self.compared(count),
            )
        if receipt is None:
            return None
        numbers = self._floors(floors)
        kept = {key: n for key, n in numbers.items() if key.removesuffix("_floor") in receipt.metrics}
        told = {"trained_in": list(subject.trained_in)} if subject.trained_in else {}
        return receipt.model_copy(update={"metrics": receipt.metrics | kept, "samples": receipt.samples | told})

    def compared(self, count: int) -> Mapping[str, NDArray[np.float32]]:
        """Features of `count` held-out images, where a metric needs them; as `held_out`."""
        return self.held_out(count, self.extractors) if held_out_needed(self.words) else {}

    def held_out(self, count: int, extractors: Sequence[Extractor]) -> Mapping[str, NDArray[np.float32]]:
        """By extractor features of `count` real images that the reference lacks, or of all there are; none where there
        are no such images. Every process must call it, the first one gets them."""
        missing = [e for e in extractors if not from_first((count, e.name) in self.real_features)]
        if self.real is None or self.real.held_out is None:
            return {}
        if missing:
            source, found = some_of(self.real.held_out, f"{self.real.name}, held out", count), Collector()
            with reporting("held-out images") as report:
                extract(source, missing, found, batch_size=self.options.batch_size, on_progress=report)
            if rank() == 0:
                self.real_features.update({(count, e.name): found.outputs(e.name)[FEATURES] for e in missing})
        return {e.name: self.real_features[count, e.name] for e in extractors} if rank() == 0 else {}

    def doubts(self, subject: Subject) -> list[str]:
        """What the receipt should say about samples, features and reference together."""
        told = notes(subject.trained_in, self.extractors)
        if self.real is None:
            return told
        if self.real.whole.fingerprint() == subject.trained_on:
            return told + ([] if self.real.part_of is None else [SEEN])
        told += [] if subject.trained_on is None else ["the run was trained on other images than this reference"]
        return told + [f"reference: {line}" for line in self.real.train.treatment("--")]

    def _floors(self, features: Mapping[str, NDArray[np.float32]]) -> dict[str, Number]:
        """Frechet distances of real images that the reference lacks."""
        numbers: dict[str, Number] = {}
        for extractor in self.extractors:
            if extractor.name in features and self.against is not None:
                real = features[extractor.name]
                evidence = Evidence(extractor, {FEATURES: real}, self.against.statistics[extractor.name])
                for key, number in METRICS["fd"].measure(evidence)[0].items():
                    told = f"{number.name} of {len(real)} real held-out images"
                    numbers[f"{key}_floor"] = number.model_copy(update={"name": told})
        return numbers


def open_jury(
    subject: Subject,
    samples: str,
    reference: str | None,
    words: Sequence[str] | None,
    ema: float | None,
    options: Options,
) -> Jury:
    """What a subject, and others like it, is judged with; every process must call it.

    Args:
        samples: the path that the subject was opened from.
        reference: a data set, a saved reference or ADM's; None takes a run's own training images.
    """
    with failing_together():
        place = reference or subject.data
        if place is None:
            raise UserError(
                f"--reference: what shall {samples} be compared with? A data set, a folder made by `epg reference`, or "
                "one of ADM's .npz files"
            )
        real = open_real(place, subject, options.split, options.rules(subject.rules))
        chosen = _features(samples, subject, place, real, options)
        real = with_fifth(real, [choice.name for choice in chosen], held_out_needed(words))
        choose(words, [choice.name for choice in chosen])  # before weights are fetched and classifiers trained
    extractors = open_extractors(chosen, real, subject.source.shape, ema, options)
    refuse_no_judge(subject.trained_in, extractors)
    return Jury(real, extractors, _reference(place, real, extractors, options), words, options)


def _features(
    samples: str, subject: Subject, place: str | DataConfig, real: Real | None, options: Options
) -> list[Choice]:
    """What the user asks for, or what fits the reference and needs no download."""
    words = list(options.features)
    if words:
        pass
    elif isinstance(place, str) and reference_files.is_saved(Path(place)):
        words = list(reference_files.load(Path(place)).statistics)
        if "encoder" in words:
            raise UserError("--features encoder=RUN: this reference has features of an encoder; of which run?")
    elif real is None or options.inception is not None:
        words = ["inception"]
    elif real.train.num_classes >= 2:
        words = ["classifier"]
    elif subject.data is None:
        raise UserError("--features: which? inception, or encoder=RUN for the encoder of a run on this data")
    else:
        words = ["random"] if subject.trained_in else [f"encoder={samples}"]
    return choices(words, options.inception)


def open_extractors(
    chosen: Sequence[Choice],
    real: Real | None,
    shape: tuple[int, int, int],
    ema: float | None,
    options: Options,
) -> list[Extractor]:
    """Every process must call it: classifiers are trained where they are not in the cache."""
    labelled = None if real is None else real.labelled
    device = pick_device(options.device)
    extractors = []
    for choice in chosen:
        with reporting(f"training a {choice.name}", images=0) as report:
            extractors.append(open_extractor(choice, labelled, shape, ema=ema, device=device, on_progress=report))
    return extractors


def _reference(
    place: str | DataConfig, real: Real | None, extractors: Sequence[Extractor], options: Options
) -> Reference | None:
    """Statistics from a file, from the cache, or computed now; all processes must call it."""
    if real is None:
        file = Path(str(place))
        if file.suffix != ".npz":
            with failing_together():
                return reference_files.load(file)
        with reporting("reference") as report:
            if reference_files.is_adm(file):
                return reference_files.load_adm(file, extractors, batch_size=options.batch_size, on_progress=report)
            return make_reference(NpzSource(file), extractors, batch_size=options.batch_size, on_progress=report)
    judges = [f"{e.name} {e.sha256}" for e in extractors]
    key = digest_of({}, real.train.fingerprint(), *judges, str(options.kept), VERSION)
    cached = cache_folder() / "references" / key[:32]
    found = reference_files.load_cached(cached) if options.cache and rank() == 0 else None
    if from_first(found is not None):
        return found
    source = DatasetSource(real.train, real.name, details={"split": real.split})
    with reporting("reference") as report:
        size = options.batch_size
        made = make_reference(source, extractors, kept=options.kept, batch_size=size, on_progress=report)
    if made is not None and options.cache:
        reference_files.save_cached(made, cached)
    return made


def reporting(what: str, images: int = 1) -> AbstractContextManager[Report]:
    """The progress of the first process, which appears with the first report; `images` as for `Display`."""
    return progress.reporting(what, images, show=rank() == 0)
