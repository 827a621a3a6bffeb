"""The quickstart's judgement, in memory and in one process: samples of a labelled data set, without any download.

A classifier trained on the data set's own labels says how often a class-conditional sample is recognised as its class,
and its features carry a Frechet distance. The distance between real training and real held-out images is the floor.
Figures of this kind compare models of one data set; they are not FIDs.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from epg.config import DataConfig, SamplingConfig
from epg.data.dataset import NoSplitError
from epg.errors import UserError
from epg.evaluation.classifier import Judge, train_classifier
from epg.evaluation.extractors.indomain import images_and_labels
from epg.evaluation.metrics import frechet_between
from epg.generator import Generator
from epg.randomness import generator
from epg.runs import open_training_data

MOST_IMAGES = 20_000  # of each real split: enough for the statistics of 64 features


@dataclass(frozen=True)
class Reference:
    """Real images of a data set, split in two, and a classifier trained on the first half of the split."""

    train: tuple[Tensor, Tensor]
    held_out: tuple[Tensor, Tensor]
    judge: Judge

    @property
    def floor(self) -> float:
        """Frechet distance between real training and real held-out images."""
        return frechet_between(self.judge.features(self.train[0]), self.judge.features(self.held_out[0]))

    def distance(self, images: Tensor) -> float:
        """Frechet distance of uint8 images (N, C, H, W) to the real training images."""
        return frechet_between(self.judge.features(images), self.judge.features(self.train[0]))


def make_reference(data: DataConfig, seed: int = 0, steps: int = 400) -> Reference:
    """Opens the data's train and test split (without one, a fifth is held out) and trains the classifier.

    Raises UserError where there are no labels or only one class: then there is nothing to recognise.
    """
    train_set = open_training_data(data)
    if train_set.num_classes < 2:
        raise UserError(f"{data.source}: evaluation with a classifier needs labels of at least two classes")
    shuffled = torch.randperm(len(train_set), generator=generator("cpu", seed, "reference")).numpy()
    try:
        test_set = open_training_data(data, split="test")
        train, held_out = shuffled[:MOST_IMAGES], None
    except NoSplitError:
        test_set, cut = train_set, max(2, len(train_set) // 5)
        train, held_out = shuffled[cut : cut + MOST_IMAGES], shuffled[:cut][:MOST_IMAGES]
    if held_out is None:
        held_out = np.arange(len(test_set))[:MOST_IMAGES]
    real, unseen = images_and_labels(train_set, train), images_and_labels(test_set, held_out)
    judge = train_classifier(real, unseen, train_set.num_classes, seed=seed, steps=steps)
    return Reference(real, unseen, judge)


@dataclass(frozen=True)
class Evaluation:
    """Numbers of one generator."""

    accuracy: float
    """Share of samples recognised as the class they were asked for."""
    frechet: float
    """Frechet distance to the training images in the classifier's features."""
    floor: float
    """The same distance between real training and real held-out images."""
    classifier_accuracy: float
    """Of the classifier on held-out real images: how far `accuracy` can be trusted."""
    count: int
    seed: int


def evaluate(
    model: Generator,
    reference: Reference,
    *,
    count: int = 1000,
    seed: int = 0,
    batch_size: int = 250,
    sampling: SamplingConfig | None = None,
) -> tuple[Evaluation, Tensor]:
    """Samples `count` images with labels in turn; numbers and the uint8 images (count, C, H, W)."""
    labels = model.make_labels(count, balanced=True, seed=seed)
    if labels is None:
        raise UserError("evaluation with a classifier needs a class-conditional model")
    images = model.sample(labels, seed=seed, batch_size=batch_size, sampling=sampling)
    judge = reference.judge
    numbers = Evaluation(
        judge.accuracy(images, labels),
        reference.distance(images),
        reference.floor,
        judge.held_out_accuracy,
        count,
        seed,
    )
    return numbers, images
