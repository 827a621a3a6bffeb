"""What samples are compared with: statistics and features of real images, how they were made, and on disk."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epg.errors import DataError
from epg.evaluation import FEATURES, SPATIAL
from epg.evaluation.extraction import Outputs, extract
from epg.evaluation.extractors.extractor import Extractor
from epg.evaluation.metrics.frechet import Moments, MomentsAccumulator
from epg.evaluation.metrics.manifolds import Manifold
from epg.evaluation.sources import DatasetSource, ImageSource, Progress
from epg.randomness import permutation

KEPT = 10_000  # features kept for precision, recall and the like: ADM's references have as many images
LARGEST_K = 5


@dataclass(frozen=True)
class Statistics:
    """Of one extractor on the real images."""

    extractor: str
    sha256: str
    """Of the extractor's weights; empty where whoever published the statistics does not say."""
    preprocessing: str
    moments: dict[str, Moments]
    """By output: features and, with Inception, spatial. Over all images."""
    features: NDArray[np.float32] | None
    """(M, D) of the images kept for precision, recall, density, coverage and KID."""

    @cached_property
    def manifold(self) -> Manifold:
        assert self.features is not None
        return manifold_of(self.features)


def manifold_of(features: NDArray[np.float32]) -> Manifold:
    """Of features (N, D), with as many neighbours as any metric asks for."""
    return Manifold(features, min(LARGEST_K, len(features) - 1))


@dataclass(frozen=True)
class Reference:
    """Statistics of real images by extractor, and a manifest of how they were made."""

    name: str
    statistics: dict[str, Statistics]
    manifest: dict[str, Any] = field(default_factory=dict)
    """image_size, channels, count, kept, enlarged (images that were smaller), seed, source (its `describe()`), pixels
    (sha256)."""
    sha256: str = ""
    """Of the file it was read from; empty for one that was just made."""


def make_reference(
    source: ImageSource,
    extractors: Sequence[Extractor],
    *,
    kept: int = KEPT,
    seed: int = 0,
    batch_size: int = 64,
    on_progress: Progress | None = None,
) -> Reference | None:
    """Statistics over all images, and the features of `kept` of them chosen at random; all processes must call it.

    None on all processes but the first. Raises DataError for fewer than two images.
    """
    description = source.describe()
    if source.count < 2:
        name = description.get("name", "the reference")
        raise DataError(f"--reference: of {name} {source.count} images are left to compare with; at least 2 are needed")
    chosen = np.zeros(source.count, dtype=bool)
    chosen[permutation(source.count, seed, "reference")[:kept]] = True
    sinks = {extractor.name: _Sink(chosen) for extractor in extractors}

    def receive(name: str, outputs: Outputs) -> None:
        sinks[name].add(outputs)

    pixels = extract(source, extractors, receive, batch_size=batch_size, on_progress=on_progress)
    if pixels is None:
        return None
    channels, height, _ = source.shape
    manifest = {
        "image_size": height,
        "channels": channels,
        "count": source.count,
        "kept": int(chosen.sum()),
        "seed": seed,
        "enlarged": source.count_enlarged() if isinstance(source, DatasetSource) else 0,
        "pixels": pixels,
        "source": description,
    }
    statistics = {e.name: sinks[e.name].statistics(e) for e in extractors}
    return Reference(str(description.get("name", "images")), statistics, manifest)


class _Sink:
    """Moments of everything, features of the chosen."""

    def __init__(self, chosen: NDArray[np.bool_]) -> None:
        self.chosen, self.position = chosen, 0
        self.accumulators: dict[str, MomentsAccumulator] = {}
        self.kept: list[NDArray[np.float32]] = []

    def add(self, outputs: Outputs) -> None:
        rows = outputs[FEATURES]
        for name in (FEATURES, SPATIAL):
            if name in outputs:
                self.accumulators.setdefault(name, MomentsAccumulator()).add(outputs[name])
        self.kept.append(rows[self.chosen[self.position : self.position + len(rows)]])
        self.position += len(rows)

    def statistics(self, extractor: Extractor) -> Statistics:
        moments = {name: accumulator.moments() for name, accumulator in self.accumulators.items()}
        features = np.concatenate(self.kept)
        return Statistics(extractor.name, extractor.sha256, extractor.preprocessing, moments, features)
