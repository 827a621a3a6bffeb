"""Features by noise level: colours with a known answer, the log's gauge, the command on two runs."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from epg.analysis.features import coloured, like_first, measure
from epg.cli import main
from epg.data.dataset import open_dataset
from epg.evaluation.noisy_features import open_encoder
from epg.evaluation.voting import take
from epg.objectives.diagnostics import feature_std
from tests.generators import save_run
from tests.helpers import tiny_config


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("features")
    for seed, name in enumerate(("pre-trained", "scratch")):
        save_run(folder / name, tiny_config(model={"num_classes": 10}), seed)
    return folder


def test_colours_are_the_principal_components_with_a_sign_of_their_own() -> None:
    """Tokens of three directions: red, green and blue are how far along each, whatever the order of the tokens."""
    rng = np.random.default_rng(0)
    along = rng.normal(size=(2, 50, 3, 3, 3)) * [3, 2, 1]
    axes = np.linalg.qr(rng.normal(size=(7, 3)))[0].T
    tokens = along @ axes + 5
    colours, explained = coloured(tokens)
    assert colours.shape == (2, 50, 3, 3, 3)
    np.testing.assert_allclose(explained, [9 / 14, 4 / 14, 1 / 14], atol=0.03)
    sign = np.sign(axes[range(3), np.abs(axes).argmax(1)])
    inside = (colours > 0) & (colours < 255)
    for component in range(3):
        where = inside[..., component]
        r = np.corrcoef(colours[..., component][where], (along * sign)[..., component][where])[0, 1]
        assert r > 0.995
    order = rng.permutation(50)
    assert np.abs(coloured(tokens[:, order])[0].astype(int) - colours[:, order]).max() <= 1
    assert not coloured(np.zeros((1, 4, 2, 2, 5)))[0].any()


def test_likeness_is_of_the_same_patch() -> None:
    tokens = np.random.default_rng(0).normal(size=(1, 20, 4, 4, 8))
    alike = like_first(np.concatenate([tokens, 0.5 * tokens, -tokens, tokens[:, ::-1]]))
    assert alike[0] == pytest.approx(1)
    assert alike[1] > 0.95
    assert alike[2] < -0.9
    assert abs(alike[3]) < 0.2


def test_spread_is_the_gauge_of_the_log_and_maps_are_the_patch_tokens(runs: Path) -> None:
    encoder = open_encoder(runs / "scratch")
    images = take(open_dataset("digits", image_size=8, channels=1), 70, "x")
    found = measure(encoder, "scratch", images, images, [0.002, 1.0])
    for spread in found.spread:
        features = encoder.features(images.images, images.noise, spread.level)
        assert spread.mean == pytest.approx(float(feature_std(torch.from_numpy(features))), rel=1e-5)
        assert spread.low < spread.mean < spread.high
    patches = encoder.patches(images.images, images.noise, 1.0)
    assert patches.shape == (70, 4, 4, 16)
    pooled = encoder.features(images.images, images.noise, 1.0, "patches")
    np.testing.assert_allclose(patches.mean((1, 2)), pooled, rtol=1e-4, atol=1e-6)
    assert found.colours.shape == (2, 70, 4, 4, 3)


def test_command(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = [str(runs / "pre-trained"), str(runs / "scratch")]
    flags = ["--levels", "2", "0.1", "--count", "30", "--shown", "3"]
    assert main(["features", *both, *flags]) == 0
    assert "pre-trained/analysis/features-maps.png" in capsys.readouterr().out.replace("\n", "")
    written = json.loads((runs / "pre-trained" / "analysis" / "features.json").read_text())
    assert [run["name"] for run in written["runs"]] == ["pre-trained", "scratch"]
    assert [level["level"] for level in written["runs"][0]["levels"]] == [0.1, 2.0]
    assert written["count"] == 30
    sheet = Image.open(runs / "pre-trained" / "analysis" / "features-maps.png")
    assert sheet.height > 3 * 3 * 96  # images, and of each of the two encoders a row
    assert main(["features", both[0], *flags, "--out", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "features.json").read_text())["runs"][0] == written["runs"][0]


def test_encoders_of_other_images_are_refused(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_run(tmp_path / "larger", tiny_config(data={"image_size": 16}))
    assert main(["features", str(runs / "scratch"), str(tmp_path / "larger")]) == 2
    assert "of images of 16x16 of 1 channels, and features0/scratch of 8x8" in capsys.readouterr().err.replace(
        "\n", " "
    )
    assert main(["features"]) == 2
    assert "pass at least one run" in capsys.readouterr().err
