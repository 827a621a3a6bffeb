"""The in-domain judge and the Frechet distance against closed forms."""

import numpy as np
import pytest
import torch

from epg.config import DataConfig
from epg.errors import UserError
from epg.evaluation.classifier import FEATURES, Classifier, train_classifier
from epg.evaluation.evaluate import make_reference
from epg.evaluation.metrics import frechet_between, frechet_distance, statistics, symmetric_root


def test_frechet_of_diagonal_gaussians() -> None:
    """|m1 - m2|^2 + sum (s1 - s2)^2."""
    m1, m2 = np.array([0.0, 1.0, 2.0]), np.array([1.0, 1.0, 0.0])
    s1, s2 = np.array([1.0, 2.0, 0.0]), np.array([3.0, 2.0, 0.5])
    expected = 5 + 4 + 0 + 0.25
    assert frechet_distance(m1, np.diag(s1**2), m2, np.diag(s2**2)) == pytest.approx(expected, rel=1e-12)


def test_frechet_agrees_with_the_matrix_square_root_of_scipy() -> None:
    from scipy.linalg import sqrtm

    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(500, 12)) @ rng.normal(size=(12, 12)), rng.normal(size=(400, 12)) + 0.3
    (m1, c1), (m2, c2) = statistics(a), statistics(b)
    expected = np.square(m1 - m2).sum() + np.trace(c1 + c2 - 2 * np.real(sqrtm(c1 @ c2)))
    assert frechet_distance(m1, c1, m2, c2) == pytest.approx(expected, rel=1e-9)


def test_identical_and_singular_sets() -> None:
    features = np.random.default_rng(0).normal(size=(5, 20))  # rank 4 in 20 dimensions
    assert frechet_between(features, features) == pytest.approx(0, abs=1e-9)
    assert frechet_between(features, features + 1) == pytest.approx(20, rel=1e-6)  # roots of rounding errors


def test_symmetric_root_squares_back() -> None:
    a = np.random.default_rng(0).normal(size=(6, 6))
    np.testing.assert_allclose(symmetric_root(a @ a.T) @ symmetric_root(a @ a.T), a @ a.T, rtol=1e-9, atol=1e-9)


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
