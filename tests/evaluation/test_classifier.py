"""The in-domain judge."""

import numpy as np
import pytest
import torch

from epg.config import DataConfig
from epg.errors import UserError
from epg.evaluation.classifier import FEATURES, Classifier, train_classifier
from epg.evaluation.quick import make_reference


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 12), (3, 32), (1, 37), (3, 64)])
def test_classifier_takes_any_size(channels: int, size: int) -> None:
    network = Classifier(channels, size, 5)
    images = torch.randint(0, 256, (2, channels, size, size), dtype=torch.uint8)
    assert network.features(images).shape == (2, FEATURES)
    assert network(images).shape == (2, 5)


def test_the_digits_judge_knows_its_digits_and_dislikes_noise() -> None:
    reference = make_reference(DataConfig(source="digits", image_size=8, channels=1))
    assert reference.judge.held_out_accuracy >= 0.97
    images, labels = reference.held_out
    noise = torch.randint(0, 256, images.shape, dtype=torch.uint8)
    one_class_missing = images[labels != 3]
    assert reference.floor < 2
    assert reference.distance(noise) > 20 * reference.floor
    assert reference.distance(one_class_missing) > reference.distance(images)
    assert reference.judge.accuracy(images, (labels + 1) % 10) < 0.05


def test_training_a_classifier_is_deterministic() -> None:
    images, labels = torch.randint(0, 256, (40, 1, 8, 8), dtype=torch.uint8), torch.arange(40) % 2
    first, second = (train_classifier((images, labels), (images, labels), 2, steps=5) for _ in range(2))
    np.testing.assert_array_equal(first.features(images), second.features(images))


def test_one_class_cannot_be_judged(tmp_path) -> None:
    from tests.test_runs import folder_of_images

    with pytest.raises(UserError, match="at least two classes"):
        make_reference(DataConfig(source=str(folder_of_images(tmp_path / "x", classes=1)), image_size=8))
