"""`epg quickstart` on a budget of seconds: everything is there, and running it again continues."""

import html
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from epg.checkpoint import checkpoint
from epg.cli import main
from epg.quickstart.length import at_length
from epg.quickstart.page import moments, verdicts
from epg.quickstart.plan import PARTS, Part, Plan, read_plan
from epg.quickstart.results import Judged, PartResult, StudyResult
from epg.quickstart.study import advice
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
    assert re.search(r"\d+ steps of diffusion are \d+% of the recipe's 1,200; .* --minutes \d+\.", told)
    assert told in html.unescape((study / "index.html").read_text())
    assert advice(1500, 3000, 9.0) == ""
    assert "less than 1 % of the recipe's 20,000" in advice(20, 20_000, 9.0)


def test_page_is_self_contained(study: Path) -> None:
    page = (study / "index.html").read_text()
    pictures = page.count("data:image/png;base64,")
    previews = sum(len(list((study / part.name / "previews").glob("*.png"))) for part in PARTS[1:])
    assert pictures == 4 + previews + 1 + 1  # three generators and real images, strips, what stage 1 sees, features
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)
    assert "from scratch" in page
    for title in ("What came out", "Losses", "What the encoder sees", "Judged", "Next"):
        assert f">{title}</h2>" in page, title
    for picture in ("samples-diffusion.png", "samples-consistency.png", "real.png"):
        assert Image.open(study / picture).size[0] > 300


def test_the_pretrained_parts_really_start_from_the_encoder(study: Path) -> None:
    encoder = checkpoint.find(study / "pretraining").tensors("model")
    frozen = checkpoint.find(study / "consistency").tensors("model")
    for name, tensor in encoder.items():
        if name.startswith("network.encoder."):
            assert frozen[name.replace("network.encoder.", "frozen_encoder.")].equal(tensor)


def test_a_finished_one_keeps_exports_and_one_checkpoint_of_each_part(study: Path) -> None:
    for part in PARTS:
        assert len(list((study / part.name / "checkpoints").iterdir())) == 1
        assert (study / part.name / "export" / "model.safetensors").is_file()
    assert sum(file.stat().st_size for file in study.rglob("*") if file.is_file()) <= 80e6


def test_running_it_again_shows_what_is_there(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is trained or judged twice; a page that was lost comes back."""
    before = {part.name: checkpoint.find(study / part.name).path.stat().st_mtime_ns for part in PARTS}
    plan, results = (study / "plan.json").read_text(), (study / "results.json").read_text()
    page = (study / "index.html").read_text().partition("<footer>")[0]  # which says when
    (study / "index.html").unlink()
    assert main(["quickstart", "--minutes", "0.05", "--out", str(study)]) == 0
    said = capsys.readouterr().out
    assert "index.html in a browser" in said
    assert f"Next: epg sample {study / 'diffusion'} --out {study / 'samples'}" in said
    assert (study / "plan.json").read_text() == plan
    assert (study / "results.json").read_text() == results
    assert (study / "index.html").read_text().partition("<footer>")[0] == page
    assert before == {part.name: checkpoint.find(study / part.name).path.stat().st_mtime_ns for part in PARTS}


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--minutes", "30"], "holds a study of 0.05 minutes. Pass --minutes 0.05 to continue or show it, or another"),
        (["--minutes", "0.05", "--seed", "1"], "holds a study of other --seed (0)"),
        (["--minutes", "0.05", "--image-size", "16"], "holds a study of other images and --image-size"),
    ],
)
def test_another_study_in_the_folder_of_one(
    study: Path, flags: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["quickstart", *flags, "--out", str(study)]) == 2
    assert told in capsys.readouterr().err


def test_a_longer_one_gets_a_folder_of_its_own(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where nobody names one; and its results are shown when it is asked for again."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(study, "runs/quickstart-digits")
    shutil.copytree(study, "runs/quickstart-digits-30min")
    plan = Path("runs/quickstart-digits-30min/plan.json")
    plan.write_text(json.dumps({**json.loads(plan.read_text()), "minutes": 30.0}))
    assert main(["quickstart", "--minutes", "30"]) == 0
    said = capsys.readouterr()
    assert "This one, of 30 minutes, goes into runs/quickstart-digits-30min" in said.err
    assert "Open runs/quickstart-digits-30min/index.html" in said.out


@pytest.mark.slow  # 40 s of CPU: the smallest plan of the recipe `small`
def test_on_a_folder_of_the_users(tmp_path: Path) -> None:
    """So few images of two classes that no classifier can be trained and tested on them."""
    source, out = folder_of_images(tmp_path / "images", classes=2, each=4), tmp_path / "study"
    arguments = ["--data", str(source), "--image-size", "8", "--minutes", "0.02", "--out", str(out)]
    assert main(["quickstart", *arguments]) == 0
    results = json.loads((out / "results.json").read_text())
    assert results["floor"] is None
    assert len(results["class_names"]) == 2
    assert (out / "index.html").stat().st_size > 10_000


# The plan -------------------------------------------------------------------------------------------------------------


def plan_of(minutes: float, seconds: float = 0.05) -> Plan:
    parts = ("pretraining", "diffusion", "consistency")
    return Plan({}, minutes, dict.fromkeys(parts, seconds), seconds / 500, milestones=5)


def trained(plan: Plan, seconds_per_step: float, parts: Sequence[Part] = PARTS) -> float:
    """Seconds that a study takes on a machine of this speed; parts that were planned too short are begun again."""
    total = 0.0
    for part in parts:
        while True:
            steps = plan.begin(part)
            plan.spent += steps * seconds_per_step
            total += steps * seconds_per_step
            plan.end(part, steps, steps * seconds_per_step)
            if not plan.longer(part):
                break
            plan.forget(part)
    return total


def test_a_machine_that_gets_busy_shortens_what_has_not_begun() -> None:
    """Four times slower than measured: the pre-training takes what it takes, and the rest is planned anew."""
    quiet, busy = plan_of(10), plan_of(10)
    assert 400 < trained(quiet, 0.05) < 600
    assert trained(busy, 0.2) < 900
    assert busy.steps["consistency"] < quiet.steps["consistency"] / 4
    assert busy.steps["diffusion"] == busy.steps["diffusion-scratch"]


def test_a_machine_that_was_busy_when_measured_leaves_no_short_training() -> None:
    quiet, measured_busy = plan_of(10), plan_of(10, seconds=1.5)
    trained(quiet, 0.05)
    trained(measured_busy, 0.05)
    for part in PARTS:
        assert measured_busy.steps[part.name] > 0.6 * quiet.steps[part.name], part.name


def test_a_plan_is_taken_up_where_it_was_left(tmp_path: Path) -> None:
    plan = plan_of(10)
    trained(plan, 0.05, PARTS[:2])
    plan.write(tmp_path)
    again = read_plan(tmp_path)
    assert again is not None
    assert (again.steps, again.seconds, again.minutes) == (plan.steps, plan.seconds, plan.minutes)
    assert again.left == pytest.approx(plan.left, abs=1)
    assert again.begin(PARTS[3]) == pytest.approx(plan.begin(PARTS[3]), rel=0.02)


# What the page says ---------------------------------------------------------------------------------------------------


def study_result(*progress: tuple[int, float, float], scratch: float = 1.0) -> StudyResult:
    """Of two diffusion models that are judged at the same steps, with a tenth of the distance as its error; that from
    scratch has `scratch` times the distance."""
    parts = [PartResult(name, name, progress[-1][0]) for name in ("pretraining", "consistency")]
    for name, factor in (("diffusion", 1.0), ("diffusion-scratch", scratch)):
        judged = [Judged(step, accuracy, factor * distance, 0.1 * distance) for step, accuracy, distance in progress]
        parts.append(PartResult(name, name, 0).with_progress(judged))
    classes = tuple("0123456789")
    return StudyResult("digits", "digits", 8, 1438, classes, tuple(parts), 1.0, 0.99, 1000, 600.0, 0, "2", 2)


def test_early_is_not_when_both_models_draw_noise() -> None:
    noise, begins, good = (50, 0.12, 400.0), (200, 0.7, 40.0), (800, 0.98, 2.0)
    assert moments(study_result(noise, begins, good)) == [("Early", 1), ("At the end", 2)]
    assert moments(study_result(noise, good)) == [("At the end", 1)]
    assert moments(study_result(good)) == [("At the end", 0)]
    assert moments(study_result(noise, noise)) == []
    assert "Early" not in " ".join(verdicts(study_result(noise, good)))
    assert "still draw noise" in verdicts(study_result(noise, noise))[0]


@pytest.mark.parametrize(
    ("scratch", "told"), [(1.2, "as close to the real images, within"), (2.0, "is closer to"), (0.5, "is further from")]
)
def test_the_page_says_no_more_than_its_numbers(scratch: float, told: str) -> None:
    (verdict,) = verdicts(study_result((800, 0.98, 2.0), scratch=scratch))
    assert told in verdict
    assert f"2.00 ± 0.2 and {2 * scratch:.2f} ± 0.2" in verdict


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
