"""Extractors that need no download: a classifier trained on the data set itself, and the run's own encoder.

For small or unusual images (digits, medical, textures), where Inception is meaningless. Their numbers compare models
of one data set, and carry the extractor's name so that nobody takes them for FIDs.
"""

import contextlib
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from epg.data.loading.base import DerivedDataset, ImageDataset
from epg.distributed import failing_together, rank, world_size
from epg.errors import ArtefactError, UserError
from epg.evaluation import FEATURES, LOGITS
from epg.evaluation.classifier import FEATURES as WIDTH
from epg.evaluation.classifier import Classifier, TrainedClassifier, train_classifier
from epg.evaluation.extractors.extractor import Extractor
from epg.evaluation.sources import Progress
from epg.randomness import permutation
from epg.storage.artefact import digest_of, match, read_tensors, write_tensors
from epg.storage.download import cache_folder
from epg.storage.files import replacing

VERSION = 1  # of architecture and training: raise it when either changes, and cached classifiers are trained anew
MOST_BYTES = 2**30  # of training images held in memory
MOST_IMAGES = 50_000
HELD_OUT = 10_000
EPOCHS, FEWEST_STEPS, MOST_STEPS, BATCH = 10, 400, 1500, 128


def classifier(
    dataset: ImageDataset,
    held_out: ImageDataset,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    on_progress: Progress | None = None,
) -> Extractor:
    """A classifier of the data set's own labels, trained now or taken from the cache; all processes must call it.

    Args:
        held_out: images to measure its accuracy on.

    Raises UserError where there are no labels or only one class.
    """
    if dataset.num_classes < 2:
        raise UserError("--features classifier: needs labels of at least two classes; use --features encoder=RUN")
    shape = (dataset.channels, dataset.image_size, dataset.image_size)
    with torch.random.fork_rng(devices=[]):
        network = Classifier(shape[0], shape[1], dataset.num_classes).eval()
    accuracy = torch.zeros((), dtype=torch.float64)
    with failing_together():
        if rank() == 0:
            judge = _cached_or_trained(dataset, held_out, network, seed, on_progress)
            network, accuracy = judge.network, accuracy + judge.held_out_accuracy
    network.requires_grad_(False).to(device)
    if world_size() > 1:  # equal on every process, whatever the machine
        for tensor in network.state_dict().values():
            dist.broadcast(tensor, 0)
        accuracy = accuracy.to(device)
        dist.broadcast(accuracy, 0)

    def compute(images: Tensor) -> dict[str, Tensor]:
        features = network.features(images.to(device))
        return {FEATURES: features.cpu(), LOGITS: network.head(features).cpu()}

    return Extractor(
        "classifier",
        digest_of(network.state_dict()),
        f"uint8 / 127.5 - 1; {WIDTH} features of a convolutional classifier of {dataset.num_classes} classes",
        compute,
        shape=shape,
        class_names=tuple(dataset.class_names),
        held_out_accuracy=float(accuracy),
    )


def _cached_or_trained(
    dataset: ImageDataset,
    held_out: ImageDataset,
    network: Classifier,
    seed: int,
    on_progress: Progress | None,
) -> TrainedClassifier:
    parts = [dataset.fingerprint(), held_out.fingerprint(), str(seed), str(VERSION)]
    file = cache_folder() / "classifiers" / f"{digest_of({}, *parts)[:32]}.safetensors"
    if file.is_file():
        with contextlib.suppress(ArtefactError):  # a damaged file is simply made again
            tensors = read_tensors(file)
            accuracy = tensors.pop("held_out_accuracy")
            match(tensors, network.state_dict(), str(file))
            network.load_state_dict(tensors)
            return TrainedClassifier(network, float(accuracy))
    judge = _train(dataset, held_out, seed, on_progress)
    with contextlib.suppress(OSError):  # without a cache it is trained every time
        file.parent.mkdir(parents=True, exist_ok=True)
        accuracy = torch.tensor(judge.held_out_accuracy, dtype=torch.float64)
        with replacing(file) as temporary:
            write_tensors(temporary, {**judge.network.state_dict(), "held_out_accuracy": accuracy})
    return judge


def _train(dataset: ImageDataset, held_out: ImageDataset, seed: int, on_progress: Progress | None) -> TrainedClassifier:
    affordable = MOST_BYTES // (dataset.channels * dataset.image_size**2)
    count = min(MOST_IMAGES, affordable, len(dataset))
    return train_classifier(
        images_and_labels(dataset, _shuffled(dataset, seed)[:count]),
        images_and_labels(held_out, _shuffled(held_out, seed)[: min(HELD_OUT, affordable)]),
        dataset.num_classes,
        steps=min(MOST_STEPS, max(FEWEST_STEPS, EPOCHS * count // BATCH)),
        batch_size=BATCH,
        seed=seed,
        on_progress=on_progress,
    )


def _shuffled(dataset: ImageDataset, seed: int) -> NDArray[np.int64]:
    return permutation(len(dataset), seed, "reference")


def with_held_out(dataset: ImageDataset, seed: int = 0) -> tuple[ImageDataset, ImageDataset]:
    """A data set without test split in two: four fifths, and a fifth chosen at random."""
    order, cut = _shuffled(dataset, seed), max(2, len(dataset) // 5)
    return DerivedDataset(dataset, np.sort(order[cut:])), DerivedDataset(dataset, np.sort(order[:cut]))


def images_and_labels(dataset: ImageDataset, indices: np.ndarray | None = None) -> tuple[Tensor, Tensor]:
    """uint8 (N, C, H, W) and int64 (N,) of (some of) a data set."""
    chosen = range(len(dataset)) if indices is None else indices
    images = torch.stack([torch.from_numpy(np.array(dataset[int(i)][0])) for i in chosen])
    return images, torch.from_numpy(dataset.labels[np.asarray(chosen)])


def untrained(channels: int, image_size: int, device: torch.device | str = "cpu") -> Extractor:
    """The classifier's architecture with random weights, always the same: a judge that nothing was trained in."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Classifier(channels, image_size, 2).requires_grad_(False).eval()
    digest = digest_of(network.state_dict())
    network.to(device)

    def compute(images: Tensor) -> dict[str, Tensor]:
        return {FEATURES: network.features(images.to(device)).cpu()}

    told = f"uint8 / 127.5 - 1; {WIDTH} features of a convolutional network with random weights"
    return Extractor("random", digest, told, compute, shape=(channels, image_size, image_size))


def encoder(path: Path, *, ema: float | None = None, device: torch.device | str = "cpu") -> Extractor:
    """CLS features of a run's encoder on clean images, fed at sigma_min as in the auxiliary loss (eq. 9).

    Args:
        path: run folder, checkpoint or export, of any stage.

    Raises ArtefactError where there is no encoder.
    """
    from epg.evaluation.noisy_features import open_encoder

    opened = open_encoder(path, ema=ema, device=device)
    data = opened.config.data

    def compute(images: Tensor) -> dict[str, Tensor]:
        clean = torch.zeros(images.shape)
        return {FEATURES: torch.from_numpy(opened.features(images, clean, 0.0))}

    normalizer = opened.normalizer
    return Extractor(
        "encoder",
        digest_of(opened.trained.network.state_dict()),
        f"(x / 255 - {normalizer.mean}) / (2 * {normalizer.std}); CLS features at sigma_min of a {opened.config.stage} "
        f"encoder of width {opened.trained.network.width}",
        compute,
        shape=(data.channels, data.image_size, data.image_size),
    )
