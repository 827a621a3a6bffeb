"""Denoising error by level: a closed form, keyed noise, and a gap exactly where the model remembers."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from epg.analysis.denoising import compare, levels_between, squared_errors, verdict
from epg.checkpoint.loading import generator_of
from epg.cli import main
from epg.data.dataset import open_dataset
from epg.errors import UserError
from epg.evaluation.noisy_features import noise_of
from epg.evaluation.sources import TensorSource
from epg.generator import Generator
from epg.runs import train
from tests.helpers import tiny_config, tiny_epg
from tests.training.test_loop import tiny


@pytest.fixture
def model() -> Generator:
    config = tiny_config(noise={"shift": 0.5})
    return generator_of(config, tiny_epg(config))


def pictures(count: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 1, 8, 8), generator=g, dtype=torch.uint8)


def test_errors_are_those_of_the_denoiser_at_shifted_levels(model: Generator) -> None:
    images, labels = pictures(70), torch.arange(70) % 3
    errors = squared_errors(model, TensorSource(images, labels), [0.1, 2.0], "x", seed=3)
    assert errors.shape == (70, 2)
    clean = model.normalizer.encode(images)
    noise = noise_of(range(70), (1, 8, 8), "denoising x", 3)
    for column, t in enumerate((0.05, 1.0)):
        with torch.no_grad():
            denoised = model.denoiser(clean + t * noise, torch.full((70,), t), labels)
        expected = (denoised - clean).square().flatten(1).mean(1)
        np.testing.assert_allclose(errors[:, column], expected.numpy(), rtol=1e-5)


def test_an_image_has_the_same_errors_in_any_company(model: Generator) -> None:
    images, labels = pictures(90), torch.arange(90) % 3
    errors = squared_errors(model, TensorSource(images, labels), [0.5], "x")
    fewer = squared_errors(model, TensorSource(images[:5], labels[:5]), [0.5], "x")
    np.testing.assert_allclose(errors[:5], fewer, rtol=1e-5)


def test_labels_are_required_where_the_model_was_trained_with_them(model: Generator) -> None:
    with pytest.raises(UserError, match="no labels"):
        squared_errors(model, TensorSource(pictures(3)), [0.5], "x")


def test_the_grid_rises_from_sigma_min_to_sigma_max(model: Generator) -> None:
    levels = levels_between(model, 5)
    assert levels == sorted(levels)
    assert (levels[0], levels[-1]) == (pytest.approx(0.002), pytest.approx(80))
    with pytest.raises(UserError, match="--levels 1"):
        levels_between(model, 1)


class Remembers(nn.Module):
    """The optimal denoiser of a set of images that it has learned by heart, at every level."""

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.images = nn.Parameter(images)

    def forward(self, x: Tensor, sigma: Tensor | float, labels: Tensor | None) -> Tensor:
        distances = (x[:, None] - self.images).square().flatten(2).sum(2)
        weights = torch.softmax(-distances / (2 * sigma**2), dim=1)
        return torch.einsum("nm,mchw->nchw", weights, self.images)

    @property
    def network(self) -> "Remembers":
        return self

    num_classes = 0


def test_a_model_that_knows_its_images_by_heart_shows_a_gap_where_noise_leaves_them_apart(model: Generator) -> None:
    known, new = pictures(40, 1), pictures(40, 2)
    by_heart = Remembers(model.normalizer.encode(known))
    memory = replace(model, denoiser=by_heart)  # type: ignore[arg-type]
    levels = [0.02, 0.5, 60.0]
    errors = [squared_errors(memory, TensorSource(images), levels, "x") for images in (known, new, pictures(40, 3))]
    found = compare(levels, *errors[:2])
    low, middle, high = found
    assert low.gap == pytest.approx(1, abs=1e-6)
    assert min(low.z, middle.z) > 20
    assert abs(high.z) < 3  # all that is left is the mean image
    assert "2 of 3 levels" in verdict(found)
    assert max(abs(level.z) for level in compare(levels, *errors[1:])) < 4


def test_means_and_their_errors() -> None:
    rng = np.random.default_rng(0)
    (level,) = compare([1.0], rng.normal(2, 1, (4000, 1)), rng.normal(3, 2, (1000, 1)))
    assert level.gap == pytest.approx(1 / 3, abs=0.05)
    assert level.train_error == pytest.approx(1 / 4000**0.5, rel=0.1)
    assert level.z == pytest.approx(1 / (1 / 4000 + 4 / 1000) ** 0.5, rel=0.15)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    train(tiny("diffusion", training={"steps": 2, "checkpoint_every": 2}), run)
    assert main(["denoising", str(run), "--levels", "3", "--count", "50"]) == 0
    assert "held-out images" in capsys.readouterr().out
    written = json.loads((run / "analysis" / "denoising.json").read_text())
    assert written["counts"] == [50, 50]
    assert len(written["levels"]) == 3
    assert len(open_dataset("digits", image_size=8, channels=1, split="test")) > 50
    assert (run / "analysis" / "denoising.png").is_file()
