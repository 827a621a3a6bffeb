"""How good a generator of `ten_minutes.py` is: grids, distances, nearest training images."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from epg.data.loading.passes import blocks
from epg.drawing import jumping
from epg.errors import UserError
from epg.evaluation import FEATURES
from epg.evaluation.extraction import Collector, extract
from epg.evaluation.extractors import choices, open_extractor
from epg.evaluation.extractors.extractor import Extractor
from epg.evaluation.extractors.indomain import images_and_labels
from epg.evaluation.metrics.frechet import Moments, frechet_distance, statistics
from epg.evaluation.metrics.manifolds import Manifold, precision_recall
from epg.evaluation.nearest import nearest
from epg.evaluation.npz import NpzSource
from epg.evaluation.sources import TensorSource
from epg.generator import Generator
from epg.networks import Spectrum
from epg.randomness import normal
from epg.sampling.pictures import save_grid
from epg.training.spectra import gaussians_of
from minutes.study import Study


class Judge:
    """FD-EfficientNet, precision and recall against the training images."""

    def __init__(self, study: Study, extractor: Extractor) -> None:
        self.extractor, self.study = extractor, study
        chosen = np.linspace(0, len(study.train) - 1, min(len(study.train), 4 * study.count)).astype(np.int64)
        features = self.features(images_and_labels(study.train, chosen)[0])
        self.reference: Moments = statistics(features)
        self.manifold = Manifold(features[:: max(1, len(features) // study.count)][: study.count], 3)

    def features(self, images: Tensor) -> NDArray[np.float32]:
        collected = Collector()
        extract(TensorSource(images), [self.extractor], collected)
        return collected.outputs(self.extractor.name)[FEATURES]

    def __call__(self, images: Tensor) -> dict[str, float]:
        features = self.features(images)
        shape = precision_recall(self.manifold, Manifold(features, 3))
        distance = frechet_distance(statistics(features), self.reference)
        return {"fd_efficientnet": distance, "precision": shape.precision, "recall": shape.recall}


def gaussian_images(study: Study) -> Tensor:
    """uint8 images of the class-wise Gaussian: what the linear part alone would draw."""
    spectrum = Spectrum(study.train.num_classes + 1, 3, study.train.image_size)
    parts = ((study.normalizer.encode(images), labels) for _, images, labels in blocks(study.train, 0))
    for name, value in gaussians_of(parts, spectrum.mean.shape, flip=True).items():
        getattr(spectrum, name).copy_(value)
    unit = normal(range(study.count), (3, study.train.image_size, study.train.image_size), "gaussian", device="cpu")
    return study.normalizer.decode(spectrum.sample(unit, study.labels))


def save_by_class(images: Tensor, labels: Tensor, file: Path) -> None:
    """A grid of the first eight images of every class."""
    rows = [images[labels == label][:8] for label in labels.unique()]
    save_grid(torch.cat(rows), file, columns=8)


def examine(study: Study, model: Generator, name: str, judge: Judge | None) -> dict[str, Any]:
    """Grids, distances and nearest training images of a generator."""
    precision = "bf16" if study.device.type == "cuda" else "fp32"
    model.to(study.device, precision)
    guidances = study.options.guidance if not jumping(model.sampling.sampler) else (1.0,)
    results: dict[str, Any] = {}
    for guidance in guidances:
        sampling = model.sampling.model_copy(update={"guidance": guidance})
        if study.options.interval is not None:
            sampling = sampling.model_copy(update={"interval": study.options.interval})
        batch = 32 if study.options.tiny else 500
        drawn = model.sample(study.labels, seed=0, sampling=sampling, batch_size=batch)
        save_by_class(drawn, study.labels, study.options.out / f"{name}-guidance-{guidance:g}.png")
        results[f"guidance {guidance:g}"] = {} if judge is None else judge(drawn)
    return {**results, "nearest_pixel_rms": beside_nearest(study, drawn, name)}


def examine_archive(study: Study, file: Path, judge: Judge | None) -> dict[str, Any]:
    """The same of what another program drew: ADM's `.npz`, with labels or without."""
    source = NpzSource(file, study.count)
    if source.count < study.count:
        raise UserError(f"--judge {file}: {source.count} images; as many as --samples ({study.count}) are judged")
    images = source.read(0, source.count)
    labels = torch.zeros(source.count) if source.labels is None else source.labels
    save_by_class(images, labels, study.options.out / f"{file.stem}.png")
    return {
        "samples": {} if judge is None else judge(images),
        "nearest_pixel_rms": beside_nearest(study, images, file.stem),
    }


def beside_nearest(study: Study, images: Tensor, name: str) -> float:
    """Draws the nearest training image beside each of the first 24. Returns the median distance: root mean square
    over pixels, in grey levels."""
    some = images[:24]
    distances, places = nearest(some.flatten(1).numpy(), study.train.images.flatten(1).numpy())
    pairs = torch.stack([some, study.train.images[torch.from_numpy(places[:, 0])]], dim=1).flatten(0, 1)
    save_grid(pairs, study.options.out / f"{name}-nearest.png", columns=12)
    return float(np.median(distances[:, 0]) / some[0].numel() ** 0.5)


def baselines(study: Study, found: dict[str, Any]) -> Judge:
    """The judge, and what it says of real images and of the class-wise Gaussian's."""
    judge = Judge(study, open_extractor(choices(["efficientnet"])[0], device=study.device))
    real = images_and_labels(study.test, np.linspace(0, len(study.test) - 1, study.count).astype(np.int64))[0]
    gaussian, before = gaussian_images(study), study.elapsed
    found["real"], found["gaussian"] = judge(real), judge(gaussian)
    found["judging_seconds"] = (study.elapsed - before) / 2
    save_by_class(gaussian, study.labels, study.options.out / "gaussian.png")
    return judge
