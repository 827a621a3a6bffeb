"""The memorisation score: held-out images give nothing, copies give one, and its error is the true one."""

import numpy as np
import pytest
from numpy.typing import NDArray

from epg.analysis.memorisation import distances, memorisation
from epg.data.dataset import open_dataset

Pixels = NDArray[np.float32]


@pytest.fixture(scope="module")
def digits() -> tuple[Pixels, Pixels]:
    """Training and held-out digits, (1438, 64) and (359, 64)."""
    sets = [open_dataset("digits", image_size=8, channels=1, split=split) for split in ("train", "test")]
    train, held_out = (np.stack([s[i][0].ravel() for i in range(len(s))]).astype(np.float32) for s in sets)
    return train, held_out


def noisy(images: Pixels, level: float, seed: int = 0) -> Pixels:
    return (images + level * np.random.default_rng(seed).normal(size=images.shape)).astype(np.float32)


def test_training_images_are_recognised_as_copies(digits: tuple[Pixels, Pixels]) -> None:
    train, held_out = digits
    for samples in (train[::3], noisy(train[::3], 5)):
        found = memorisation(samples, train, held_out, "pixels")
        assert found.score > 0.99
        assert found.significant
        assert found.copies > 0.9
        assert "copies training images" in found.verdict
    assert memorisation(train[::3], train, held_out, "pixels").distance == 0


def test_held_out_images_are_not(digits: tuple[Pixels, Pixels]) -> None:
    train, held_out = digits
    found = memorisation(held_out[::2], train, held_out[1::2], "pixels")
    assert abs(found.score) < 3 * found.error
    assert not found.significant
    assert found.copies == found.copies_held_out == 0
    assert found.verdict == "no sign of memorisation"


def test_typical_samples_are_near_to_all_real_ones_and_no_copies() -> None:
    """What guidance does: less spread than the data."""
    rng = np.random.default_rng(0)
    train, held_out, samples = (rng.normal(size=(n, 8)) for n in (800, 400, 600))
    found = memorisation(0.6 * samples, train, held_out, "points")
    assert not found.significant


def test_a_mixture_scores_its_share_of_copies(digits: tuple[Pixels, Pixels]) -> None:
    train, held_out = digits
    new, pool = held_out[:120], held_out[120:]
    found = memorisation(np.concatenate([train[:120], new]), train, pool, "pixels")
    alone = memorisation(new, train, pool, "pixels")
    assert found.score == pytest.approx((1 + alone.score) / 2, abs=1e-12)


def test_the_error_is_that_of_dealing_the_labels_anew() -> None:
    """Also with hubs: here one real image is the neighbour of half of the samples."""
    rng = np.random.default_rng(0)
    real = rng.normal(size=(30, 2)).astype(np.float32)
    samples = np.concatenate([rng.normal(size=(20, 2)), real[:1] + 0.01 * rng.normal(size=(20, 2))]).astype(np.float32)
    scores, errors = [], []
    for _ in range(600):
        order = rng.permutation(30)
        found = memorisation(samples, real[order[:20]], real[order[20:]], "points")
        scores.append(found.score)
        errors.append(found.error)
    assert np.std(errors) < 1e-12  # the same whoever is called a training image
    assert np.mean(scores) == pytest.approx(0, abs=4 * errors[0] / 600**0.5)
    assert np.std(scores) == pytest.approx(errors[0], rel=0.1)
    assert errors[0] > 2 * (0.5 / 40**0.5)  # binomial counting would promise less than half of it


def test_samples_drawn_towards_training_images_are_told_from_copies(digits: tuple[Pixels, Pixels]) -> None:
    """A third of the way from a new image to the nearest training image."""
    train, held_out = digits
    new, pool = held_out[:180], held_out[180:]
    nearest_train = train[distances(new, train, pool).train_index[:, 0]]
    found = memorisation(new + (nearest_train - new) / 3, train, pool, "pixels")
    assert found.significant
    assert found.copies == 0
    assert found.verdict.startswith("drawn to training images")


def test_an_image_in_both_sets_counts_half() -> None:
    real = np.arange(8, dtype=np.float32)[:, None] * 10
    found = distances(real[:4], real[:4], real[:4])
    assert found.nearer_to_train.tolist() == [0.5] * 4


def test_too_few_images_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 of each"):
        memorisation(np.zeros((3, 2)), np.zeros((4, 2)), np.zeros((1, 2)), "pixels")


def test_features_fitted_to_the_training_images_are_found_out() -> None:
    """The held-out images lie further out, as in the features of a network that has overfitted: no verdict then."""
    rng = np.random.default_rng(0)
    train, held_out, samples = (rng.normal(size=(n, 4)) for n in (800, 400, 400))
    assert memorisation(samples, train, held_out, "points").fair
    unfair = memorisation(samples, train, 1.7 * held_out, "points")
    assert not unfair.fair
    assert "nothing can be said" in unfair.verdict


def test_the_control_has_about_the_error_it_claims() -> None:
    rng = np.random.default_rng(0)
    found = [memorisation(r[:5], r[5:125], r[125:], "points") for r in rng.normal(size=(300, 185, 3))]
    deviations = [f.control / f.control_error for f in found]
    assert abs(np.mean(deviations)) < 0.25
    assert 0.7 < np.std(deviations) < 1.4
