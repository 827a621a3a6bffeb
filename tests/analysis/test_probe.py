"""Probes: the classifiers on problems with known answers, features as stage 1 computes them, the whole command."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from epg.analysis.probe import LINEAR, TRANSFERRED, VOTE, linear_probe, probe
from epg.cli import main
from epg.data.dataset import open_dataset
from epg.errors import ArtefactError, UserError
from epg.evaluation.noisy_features import noise_of, noisy_encoder, open_encoder
from epg.evaluation.voting import nearest_vote, take
from epg.objectives.pretraining import Pretraining
from epg.runs import build_objective, train
from tests.helpers import GOLDEN
from tests.training.test_loop import tiny


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pre-trained encoder and a generator, two steps each."""
    folder = tmp_path_factory.mktemp("probe")
    train(tiny("pretraining", training={"steps": 2, "checkpoint_every": 2}), folder / "pretraining")
    train(tiny("diffusion", training={"steps": 2, "checkpoint_every": 2}), folder / "diffusion")
    return folder


def blobs(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two classes on both sides of a plane, at 3 standard deviations, in 5 dimensions of very different scale."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(2, size=count)
    x = rng.normal(size=(count, 5))
    x[:, 0] += 6 * labels
    return (x * [0.001, 1, 1, 1000, 1]).astype(np.float32), labels


def test_linear_probe_finds_the_plane_whatever_the_scale() -> None:
    (x, y), (x_test, y_test) = blobs(400, 0), blobs(1000, 1)
    assert (linear_probe(x, y)(x_test) == y_test).mean() > 0.99
    shuffled = np.random.default_rng(2).permutation(y)
    assert 0.3 < (linear_probe(x, shuffled)(x_test) == y_test).mean() < 0.7


def test_vote_weighs_by_cosine() -> None:
    """Two neighbours at right angles lose against one in the same direction; length is nothing."""
    train_features = np.array([[0, 5], [0, -9], [1, 0.01]], np.float32)
    labels = np.array([0, 0, 1])
    assert nearest_vote(train_features, labels, np.array([[100, 0], [0, 0.1]], np.float32), k=3).tolist() == [1, 0]


def test_features_are_those_that_stage_1_compares(runs: Path) -> None:
    """The same images, noise and level as `Pretraining._encode` sees."""
    encoder = open_encoder(runs / "pretraining")
    objective = build_objective(encoder.config)
    assert isinstance(objective, Pretraining)
    objective.network.encoder.load_state_dict(encoder.trained.network.state_dict())
    images = take(open_dataset("digits", image_size=8, channels=1), 5, "x")
    x = objective.normalizer.encode(images.images) + 0.5 * images.noise
    with torch.no_grad():
        (expected,) = objective._encode(objective.network, [(x, torch.tensor(0.5))])
    features = encoder.features(images.images, images.noise, 0.5)
    np.testing.assert_allclose(features, expected.numpy(), rtol=1e-4, atol=1e-5)
    assert not np.allclose(features, encoder.features(images.images, images.noise, 1.0), atol=1e-2)
    patches = encoder.features(images.images, images.noise, 0.5, "patches")
    assert patches.shape == features.shape
    assert not np.allclose(patches, features, atol=1e-2)


def test_a_generator_is_probed_as_if_without_a_class(runs: Path) -> None:
    encoder = open_encoder(runs / "diffusion")
    assert encoder.trained.condition is not None
    images = take(open_dataset("digits", image_size=8, channels=1), 5, "x")
    without = noisy_encoder(encoder.name, encoder.trained.network, encoder.config)
    a, b = (e.features(images.images, images.noise, 0.5) for e in (encoder, without))
    assert not np.array_equal(a, b)


RELEASED = """
base: cifar10
model:
  patch_size: 4
  encoder: {depth: 3, width: 48, heads: 3}
  decoder: {width: 80, heads: 5}
  projector_hidden: 64
  projector_out: 32
"""


@pytest.mark.parametrize("file", ["official_rcm_weights", "official_epg_weights"])
def test_a_weight_file_of_the_release(file: str, tmp_path: Path) -> None:
    weights = GOLDEN / f"{file}.safetensors"
    (tmp_path / "released.yaml").write_text(RELEASED)
    encoder = open_encoder(weights, recipe=str(tmp_path / "released.yaml"))
    tensors = load_file(weights)
    assert torch.equal(encoder.trained.network.cls_token, tensors["cls_token"])
    assert (encoder.trained.condition is None) == ("rcm" in file)
    assert torch.equal(
        encoder.trained.network.state_dict()["blocks.2.mlp.fc2.weight"], tensors["blocks.2.mlp.fc2.weight"]
    )


def test_noise_belongs_to_the_image() -> None:
    assert torch.equal(noise_of([4, 7], (1, 8, 8), "p")[1], noise_of([7], (1, 8, 8), "p")[0])
    assert not torch.equal(noise_of([7], (1, 8, 8), "p"), noise_of([7], (1, 8, 8), "q"))


def test_noise_destroys_what_a_probe_can_know(runs: Path) -> None:
    """Pixels of clean digits are nearly separable, random weights know less, and at level 80 nothing is left."""
    splits = [open_dataset("digits", image_size=8, channels=1, split=split) for split in ("train", "test")]
    train_split, test_split = take(splits[0], 600, "train"), take(splits[1], 200, "test")
    results = probe(open_encoder(runs / "pretraining"), train_split, test_split, levels=(80.0, 0.002))
    values = {(r.features, r.method, r.level): r.value for r in results}
    assert len(values) == 3 * 3 * 2
    assert [r.level for r in results[::3]] == [0.002, 80.0] * 3
    assert values["pixels", LINEAR, 0.002] > 0.9
    assert values["pixels", VOTE, 0.002] > 0.9
    assert values["pixels", LINEAR, 0.002] == values["pixels", TRANSFERRED, 0.002]
    assert values["random weights", LINEAR, 0.002] < values["pixels", LINEAR, 0.002]
    assert all(value < 0.25 for (_, _, level), value in values.items() if level == 80.0)
    assert results[0].error == pytest.approx((results[0].value * (1 - results[0].value) / 200) ** 0.5)


@pytest.mark.parametrize("run", ["pretraining", "diffusion/export"])
def test_command(run: str, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--levels", "0.002", "1", "--train-count", "60", "--test-count", "30", "--out", str(tmp_path)]
    assert main(["probe", str(runs / run), *options]) == 0
    assert "random weights" in capsys.readouterr().out
    written = json.loads((tmp_path / "probe.json").read_text())
    assert (written["train"]["count"], written["test"]["count"], len(written["accuracies"])) == (60, 30, 18)
    assert Image.open(tmp_path / "probe.png").size[0] > 1000


def test_results_go_beside_a_checkpoint_and_not_into_it(runs: Path) -> None:
    (newest,) = (runs / "pretraining" / "checkpoints").iterdir()
    assert main(["probe", str(newest), "--levels", "1", "--train-count", "40", "--test-count", "20"]) == 0
    assert (runs / "pretraining" / "analysis" / "probe.json").is_file()
    assert main(["verify", str(runs / "pretraining")]) == 0


def test_what_cannot_be_probed_is_refused(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="--recipe"):
        open_encoder(GOLDEN / "official_rcm_weights.safetensors")
    with pytest.raises(ArtefactError, match="no checkpoint"):
        open_encoder(tmp_path)
    encoder = open_encoder(runs / "pretraining")
    images = take(open_dataset("digits", image_size=8, channels=1), 5, "x")
    with pytest.raises(UserError, match="--levels 0: must be positive"):
        probe(encoder, images, images, levels=[0])
    images.labels[:] = 3
    with pytest.raises(UserError, match="at least two classes"):
        probe(encoder, images, images)
