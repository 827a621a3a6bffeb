"""`epg quickstart` on a budget of seconds: everything is there, and running it again continues."""

import html
import json
import re
from pathlib import Path

import pytest
from PIL import Image

from epg.cli import main
from epg.quickstart.length import at_length
from epg.quickstart.study import PARTS, advice
from epg.training import checkpoint
from tests.test_runs import folder_of_images
from tests.training.test_loop import tiny


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    assert main(["quickstart", "--minutes", "0.05", "--out", str(folder)]) == 0
    return folder


def test_results_are_complete(study: Path) -> None:
    results = json.loads((study / "results.json").read_text())
    parts = {part["name"]: part for part in results["parts"]}
    assert parts.keys() == {part.name for part in PARTS}
    assert results["classifier_accuracy"] >= 0.97
    assert results["floor"] < 20  # of as many held-out images as samples: few in three seconds
    for name, part in parts.items():
        if name != "pretraining":
            assert 0 < part["accuracy"] <= 1
            assert part["frechet"] > results["floor"]
    assert parts["diffusion"]["steps"] == parts["diffusion-scratch"]["steps"]


def test_a_short_training_says_what_a_whole_one_takes(study: Path) -> None:
    told = json.loads((study / "results.json").read_text())["advice"]
    assert re.search(r"20 steps of diffusion are 2% of the recipe's 1,200; .* --minutes \d+ ", told)
    assert html.escape(told) in (study / "index.html").read_text()
    assert advice(1500, 3000, 9.0) == ""


def test_page_is_self_contained(study: Path) -> None:
    page = (study / "index.html").read_text()
    assert page.count("data:image/png;base64,") == 7  # three generators, real images, curves, progress, views
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    assert "from scratch" in page
    for picture in ("samples-diffusion.png", "samples-consistency.png", "real.png", "curves.png"):
        assert Image.open(study / picture).size[0] > 300


def test_the_pretrained_parts_really_start_from_the_encoder(study: Path) -> None:
    encoder = checkpoint.find(study / "pretraining").tensors("model")
    frozen = checkpoint.find(study / "consistency").tensors("model")
    for name, tensor in encoder.items():
        if name.startswith("network.encoder."):
            assert frozen[name.replace("network.encoder.", "frozen_encoder.")].equal(tensor)


def test_running_it_again_trains_nothing_twice(study: Path) -> None:
    before = {part.name: checkpoint.find(study / part.name).path.stat().st_mtime_ns for part in PARTS}
    plan = (study / "plan.json").read_text()
    assert main(["quickstart", "--minutes", "0.05", "--out", str(study)]) == 0
    assert (study / "plan.json").read_text() == plan
    assert before == {part.name: checkpoint.find(study / part.name).path.stat().st_mtime_ns for part in PARTS}


@pytest.mark.parametrize("flat", [False, True])
def test_on_a_folder_of_the_users(flat: bool, tmp_path: Path) -> None:
    images = folder_of_images(tmp_path / "images", classes=2, each=10)
    source = images / "class0" if flat else images
    out = tmp_path / "study"
    arguments = ["--data", str(source), "--image-size", "16", "--minutes", "0.02", "--out", str(out)]
    assert main(["quickstart", *arguments]) == 0
    results = json.loads((out / "results.json").read_text())
    assert (results["floor"] is None) == flat
    assert (out / "index.html").stat().st_size > 10_000


def test_a_budget_must_be_positive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quickstart", "--minutes", "0", "--out", str(tmp_path)]) == 2
    assert "--minutes 0" in capsys.readouterr().err


def test_at_length_scales_what_counts_steps() -> None:
    config = tiny("consistency", training={"steps": 1000}, optimizer={"warmup_steps": 100}, objective={"d": 200})
    half = at_length(config, 500)
    assert (half.training.steps, half.optimizer.warmup_steps) == (500, 50)
    assert half.training.ema == pytest.approx([0.98])  # of 0.99
    assert at_length(config, 2000).training.ema == [0.99]
    assert half.objective.kind == "consistency"
    assert half.objective.d == 100
