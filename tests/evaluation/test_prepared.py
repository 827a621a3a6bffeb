"""A prepared set as samples, as reference, and in `epg reference`: what docs/evaluation.md prints first."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from epg.cli import main
from epg.evaluation import receipt
from tests.evaluation.helpers import random_images
from tests.evaluation.test_sources import write_folder
from tests.generators import save_run
from tests.helpers import tiny_config


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of two classes with splits, each prepared; a grey run of the same size."""
    home = tmp_path_factory.mktemp("prepared")
    images = random_images(60, channels=1)
    for i, (split, name) in enumerate([("train", "a"), ("train", "b"), ("test", "a"), ("test", "b")]):
        write_folder(home / "images" / split / name, images[15 * i : 15 * i + 15])
    for split in ("train", "test"):
        set_ = ["--image-size", "8", "--channels", "1", "--split", split, "--workers", "0"]
        assert main(["prepare", str(home / "images"), str(home / "sets" / split), *set_]) == 0
    save_run(home / "run", tiny_config())
    return home


def judge(home: Path, *arguments: str | Path) -> receipt.Receipt:
    words = ["--features", f"encoder={home / 'run'}", "--metrics", "fd", "--out", str(home / "r.json"), "--no-cache"]
    assert main(["evaluate", *map(str, arguments), *words]) == 0
    return receipt.read(home / "r.json")


def test_a_set_is_judged_against_a_set_and_its_statistics(home: Path) -> None:
    train, test = home / "sets" / "train", home / "sets" / "test"
    features = ["--features", f"encoder={home / 'run'}"]
    assert main(["reference", str(train), *features, "--out", str(home / "statistics")]) == 0
    against_set = judge(home, test, "--reference", home / "sets")
    against_statistics = judge(home, test, "--reference", home / "statistics")
    of_the_folder = judge(home, home / "images" / "test" / "a", "--reference", train)
    assert against_set.metrics["fd_encoder"].value == against_statistics.metrics["fd_encoder"].value > 0
    assert (against_set.samples["count"], of_the_folder.samples["count"]) == (30, 15)
    assert against_set.samples["split"] == "test"
    assert against_set.reference["count"] == against_statistics.reference["count"] == 30
    assert (of_the_folder.reference["count"], of_the_folder.reference["image_size"]) == (24, 8)  # a fifth is set aside


def test_a_set_of_one_split_needs_no_flag_for_it(home: Path) -> None:
    """A set prepared from the training split as samples, and one of the test split as reference."""
    swapped = judge(home, home / "sets" / "train", "--reference", home / "sets" / "test")
    assert swapped.samples["split"] == "train"
    assert "test" in swapped.reference["source"]["split"]


def test_a_folder_of_sets_gives_the_floor_its_own_test_split(home: Path) -> None:
    both = judge(home, home / "sets", "--reference", home / "sets")
    assert both.samples["split"] == "test"
    assert both.reference["count"] == 30
    assert both.metrics["fd_encoder_floor"].value == pytest.approx(both.metrics["fd_encoder"].value, rel=1e-6)


def test_a_run_against_a_set(home: Path) -> None:
    found = judge(home, home / "run", "--reference", home / "sets" / "train", "--count", "12", "--steps", "2")
    assert found.samples["kind"] == "generator"
    assert torch.isfinite(torch.tensor(found.metrics["fd_encoder"].value))


def test_another_size_is_refused(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_folder(home / "large", random_images(6, size=16, channels=1))
    code = main(
        ["evaluate", str(home / "large"), "--reference", str(home / "sets" / "train"), "--features", "classifier"]
    )
    assert code == 2
    assert "prepared at 8x8, but 16x16 is asked for" in capsys.readouterr().err
    code = main(["reference", str(home / "sets" / "train"), "--image-size", "4", "--out", str(home / "no")])
    assert code == 2
    assert not (home / "no").exists()


def test_a_reference_that_is_not_prepared_says_how_its_images_were_read(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for k in range(12):
        values = np.random.default_rng(k).integers(0, 4096, (8, 8)).astype(np.uint16)
        Image.fromarray(values).save(tmp_path / f"{k}.png")
    colour = save_run(home / "colour", tiny_config(data={"channels": 3}))
    whole = ["reference", str(tmp_path), "--features", f"encoder={colour}", "--image-size", "8"]
    whole += ["--out", str(home / "deep")]
    assert main(whole) == 0
    said = capsys.readouterr().out
    assert "12 of 12 images: of more than 8 bits" in said
    assert "--range 0 4095" in said
    assert main([*whole, "--range", "0", "4095"]) == 0
    assert "--range" not in capsys.readouterr().out
    asked = judge(home, home / "sets" / "test", "--reference", tmp_path)
    assert any("reference: Their values go" in line for line in asked.warnings)
    answered = judge(home, home / "sets" / "test", "--reference", tmp_path, "--range", "0", "4095")
    assert not any("Their values go" in line for line in answered.warnings)
    run = save_run(home / "deep-run", tiny_config(data={"range": [0, 4095]}))
    inherited = judge(home, run, "--reference", tmp_path, "--count", "8")
    assert not any("Their values go" in line for line in inherited.warnings)
    assert inherited.reference["pixels"] == answered.reference["pixels"] != asked.reference["pixels"]
    assert answered.metrics["fd_encoder"].value != asked.metrics["fd_encoder"].value
    assert main([*whole, "--background", "nocolour"]) == 2
    assert "--background nocolour: no colour" in capsys.readouterr().err
