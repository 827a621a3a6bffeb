"""The in-domain classifier."""

from pathlib import Path

import pytest
import torch

from epg.data.dataset import open_dataset
from epg.errors import UserError
from epg.evaluation import FEATURES, LOGITS
from epg.evaluation.classifier import FEATURES as WIDTH
from epg.evaluation.classifier import Classifier, train_classifier
from epg.evaluation.extractors.indomain import classifier, images_and_labels
from epg.evaluation.metrics.frechet import frechet_between
from tests.test_runs import folder_of_images


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 12), (3, 32), (1, 37), (3, 64)])
def test_classifier_takes_any_size(channels: int, size: int) -> None:
    network = Classifier(channels, size, 5)
    images = torch.randint(0, 256, (2, channels, size, size), dtype=torch.uint8)
    assert network.features(images).shape == (2, WIDTH)
    assert network(images).shape == (2, 5)


def test_the_digits_classifier_knows_its_digits_and_dislikes_noise() -> None:
    train, test = (open_dataset("digits", image_size=8, channels=1, split=split) for split in ("train", "test"))
    extractor = classifier(train, test)
    assert extractor.held_out_accuracy is not None
    assert extractor.held_out_accuracy >= 0.97
    images, labels = images_and_labels(test)
    real = extractor.compute(images_and_labels(train)[0])[FEATURES].numpy()

    def distance(samples: torch.Tensor) -> float:
        return frechet_between(extractor.compute(samples)[FEATURES].numpy(), real)

    noise = torch.randint(0, 256, images.shape, dtype=torch.uint8)
    floor = distance(images)
    assert floor < 2
    assert distance(noise) > 20 * floor
    assert distance(images[labels != 3]) > floor
    assert (extractor.compute(images)[LOGITS].argmax(1) == (labels + 1) % 10).double().mean() < 0.05


def test_training_a_classifier_is_deterministic() -> None:
    images, labels = torch.randint(0, 256, (40, 1, 8, 8), dtype=torch.uint8), torch.arange(40) % 2
    first, second = (train_classifier((images, labels), (images, labels), 2, steps=5) for _ in range(2))
    assert torch.equal(first.network.features(images), second.network.features(images))


def test_one_class_cannot_be_judged(tmp_path: Path) -> None:
    images = open_dataset(str(folder_of_images(tmp_path / "x", classes=1)), image_size=8, channels=3)
    with pytest.raises(UserError, match="at least two classes"):
        classifier(images, images)
