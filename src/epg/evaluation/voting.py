"""Labelled images under noise, and the vote of their nearest neighbours in the features of an encoder."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from epg.data.configured import open_training_data
from epg.data.loading.base import DerivedDataset, ImageDataset, NoSplitError
from epg.errors import UserError
from epg.evaluation.extractors.indomain import images_and_labels
from epg.evaluation.nearest import nearest
from epg.evaluation.noisy_features import Features, NoisyEncoder, noise_of
from epg.randomness import permutation

NEIGHBOURS, TEMPERATURE = 20, 0.07

Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Labelled images and their noise, the same at every level: each image moves along one trajectory."""

    images: Tensor  # uint8 (N, C, H, W)
    labels: Labels
    noise: Tensor  # (N, C, H, W)


def take(dataset: ImageDataset, count: int, purpose: str, seed: int = 0) -> Split:
    """At most `count` images, chosen at random, with noise that belongs to each image."""
    chosen = np.sort(permutation(len(dataset), seed, "probe", purpose)[:count])
    images, labels = images_and_labels(dataset, chosen)
    noise = noise_of(chosen.tolist(), (dataset.channels, *images.shape[2:]), f"probe {purpose}", seed)
    return Split(images, labels.numpy(), noise)


def nearest_vote(train: Features, labels: Labels, test: Features, k: int = NEIGHBOURS) -> Labels:
    """Classes (M,) named by the k nearest training features (N, D), each with weight exp(cosine / 0.07)."""
    unit_train, unit_test = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (train, test))
    distances, indices = nearest(unit_test, unit_train, min(k, len(train)))
    cosine = 1 - distances**2 / 2
    weights = np.exp((cosine - cosine.max(1, keepdims=True)) / TEMPERATURE)
    votes = np.zeros((len(test), int(labels.max()) + 1))
    np.add.at(votes, (np.arange(len(test))[:, None], labels[indices]), weights)
    return votes.argmax(1)


def labelled_splits(encoder: NoisyEncoder, source: str, seed: int) -> tuple[ImageDataset, ImageDataset]:
    """Training and test images for the probes; a fifth of a set that has no test split. Raises UserError."""
    config = encoder.config.data.model_copy(update={"source": source})
    train = open_training_data(config)
    if train.num_classes < 2:
        raise UserError(f"--data {source}: a probe needs labels of at least two classes")
    try:
        test = open_training_data(config, split="test")
    except NoSplitError:
        test = None
    if test is not None and test.num_classes:
        return train, test
    order = permutation(len(train), seed, "probe split")
    cut = max(2, len(train) // 5)
    return DerivedDataset(train, order[cut:]), DerivedDataset(train, order[:cut])
