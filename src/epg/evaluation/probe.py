"""How much an encoder knows of images under noise: linear probe and k-NN accuracy by noise level (`epg probe`).

The paper's claim is that representation consistency carries the semantics of clean images to every noise level. Three
questions at each level: how well a linear classifier does that is trained at this level, how well one does that was
trained on almost clean images (the features of noisy images must then be the *same*, not only informative), and how
well the nearest neighbours vote. Random weights and plain pixels are asked the same.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from epg.data.base import ImageDataset, NoSplitError
from epg.data.configured import open_training_data
from epg.data.subset import SubsetDataset
from epg.errors import UserError
from epg.evaluation.nearest import nearest
from epg.evaluation.noisy_features import Features, NoisyEncoder, Pool, noise_of
from epg.evaluation.sources import DatasetSource
from epg.randomness import permutation

LEVELS = (0.002, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0)  # unshifted
PENALTIES = (0.001, 0.01, 0.1, 1.0)  # inverse strength C of the linear probe, chosen on a fifth of the training images
NEIGHBOURS, TEMPERATURE = 20, 0.07
LINEAR, TRANSFERRED, VOTE = "linear", "linear, trained clean", "k-NN"

Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Labelled images and their noise, the same at every level: each image moves along one trajectory."""

    images: Tensor  # uint8 (N, C, H, W)
    labels: Labels
    noise: Tensor  # (N, C, H, W)


@dataclass(frozen=True)
class Accuracy:
    """One number of the study."""

    features: str
    """What was probed: the encoder, random weights, pixels."""
    method: str
    """linear; linear, trained clean; k-NN."""
    level: float
    """Unshifted noise level."""
    value: float
    """Share of test images whose class was named."""
    error: float
    """Binomial standard error."""


def take(dataset: ImageDataset, count: int, purpose: str, seed: int = 0) -> Split:
    """At most `count` images, chosen at random, with noise that belongs to each image."""
    chosen = np.sort(permutation(len(dataset), seed, "probe", purpose)[:count])
    source = DatasetSource(dataset, purpose, chosen)
    images = source.read(0, source.count)
    noise = noise_of(chosen.tolist(), source.shape, f"probe {purpose}", seed)
    return Split(images, dataset.labels[chosen], noise)


def linear_probe(train: Features, labels: Labels, seed: int = 0) -> Callable[[Features], Labels]:
    """A multinomial logistic regression on standardised features (N, D); gives the classes of others.

    The strength of its L2 penalty is the one that does best on a fifth of the training images, after which it is
    fitted to all of them.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def fitted(penalty: float, x: Features, y: Labels) -> Any:
        return make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=500)).fit(x, y)

    order = permutation(len(train), seed, "linear probe")
    held_out, rest = np.split(order, [max(1, len(train) // 5)])
    scores = [fitted(c, train[rest], labels[rest]).score(train[held_out], labels[held_out]) for c in PENALTIES]
    return fitted(PENALTIES[int(np.argmax(scores))], train, labels).predict


def nearest_vote(train: Features, labels: Labels, test: Features, k: int = NEIGHBOURS) -> Labels:
    """Classes (M,) named by the k nearest training features (N, D), each with weight exp(cosine / 0.07)."""
    unit_train, unit_test = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (train, test))
    distances, indices = nearest(unit_test, unit_train, min(k, len(train)))
    cosine = 1 - distances**2 / 2
    weights = np.exp((cosine - cosine.max(1, keepdims=True)) / TEMPERATURE)
    votes = np.zeros((len(test), int(labels.max()) + 1))
    np.add.at(votes, (np.arange(len(test))[:, None], labels[indices]), weights)
    return votes.argmax(1)


def probe(
    encoder: NoisyEncoder,
    train: Split,
    test: Split,
    *,
    levels: Sequence[float] = LEVELS,
    pool: Pool = "cls",
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Accuracy]:
    """Accuracies of the encoder, of random weights and of pixels at every level, lowest level first.

    Raises UserError for training images of a single class or a level that is not positive.
    """
    if len(np.unique(train.labels)) < 2:
        raise UserError("--data: a probe needs labels of at least two classes")
    if not levels or not all(level > 0 for level in levels):
        raise UserError(f"--levels {' '.join(f'{level:g}' for level in levels)}: must be positive")
    untrained = encoder.untrained(seed)
    spaces: dict[str, Callable[[Split, float], Features]] = {
        "encoder": lambda s, level: encoder.features(s.images, s.noise, level, pool),
        untrained.name: lambda s, level: untrained.features(s.images, s.noise, level, pool),
        "pixels": lambda s, level: encoder.pixels(s.images, s.noise, level),
    }
    results = []
    for name, features in spaces.items():
        for result in _by_level(name, features, train, test, sorted(levels), seed):
            results.append(result)
            if on_progress:
                on_progress(len(results), len(spaces) * len(levels) * 3)
    return results


def _by_level(
    name: str,
    features: Callable[[Split, float], Features],
    train: Split,
    test: Split,
    levels: Sequence[float],
    seed: int,
) -> Iterator[Accuracy]:
    clean: Callable[[Features], Labels] | None = None
    for level in levels:
        x, y = features(train, level), features(test, level)
        classify = linear_probe(x, train.labels, seed)
        clean = clean or classify
        named = {LINEAR: classify(y), TRANSFERRED: clean(y), VOTE: nearest_vote(x, train.labels, y)}
        for method, predicted in named.items():
            value = float((predicted == test.labels).mean())
            yield Accuracy(name, method, level, value, (value * (1 - value) / len(test.labels)) ** 0.5)


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
    return SubsetDataset(train, order[cut:]), SubsetDataset(train, order[:cut])
