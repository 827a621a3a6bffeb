"""Sweeps: points that are kept and shared, averages, the best as flags."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from epg.analysis.sweep_points import Axes, Point
from epg.analysis.sweep_report import lines, notes, rank_by, run_sweep
from epg.cli import main
from epg.errors import UserError
from epg.evaluation import receipt
from epg.evaluation.jury import Options
from epg.runs import train
from tests import started
from tests.training.test_loop import tiny

COUNT = 20


def test_grid_is_every_combination_with_the_same_weights_together() -> None:
    points = list(Axes(ema=(0.9, 0.99), width=(0.1,), guidance=(1, 2), steps=(4,)).grid())
    assert [(p.ema, p.width, p.guidance) for p in points] == [
        *((0.9, None, 1), (0.9, None, 2), (0.99, None, 1), (0.99, None, 2)),
        *((None, 0.1, 1), (None, 0.1, 2)),
    ]
    assert {p.steps for p in points} == {4}
    assert list(Axes().grid()) == [Point()]


def test_one_end_of_the_interval_keeps_the_other() -> None:
    assert Point(interval_low=0.3).changes((0.19, 1.61), 80.0) == {"interval": (0.3, 1.61)}
    assert Point(interval_high=3.0).changes((0.19, 1.61), 80.0) == {"interval": (0.19, 3.0)}
    assert Point(guidance=2.0).changes((0.19, 1.61), 80.0) == {"guidance": 2.0}


def test_few_steps_go_on_at_every_falling_choice_of_levels() -> None:
    points = list(Axes(steps=(1, 2, 4), between=(0.3, 1, 3, 10)).grid())
    assert [p.between for p in points] == [
        (),
        *((10,), (3,), (1,), (0.3,)),
        *((10, 3, 1), (10, 3, 0.3), (10, 1, 0.3), (3, 1, 0.3)),
    ]
    assert points[5].changes((0.19, 1.61), 80.0) == {"steps": 4, "levels": (80.0, 10, 3, 1)}
    assert len({p.name for p in points}) == len(points)
    with pytest.raises(UserError, match="4 steps need 3 levels to choose from, not 2"):
        list(Axes(steps=(4,), between=(1, 2)).grid())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep") / "run"
    training = {"steps": 6, "checkpoint_every": 2, "keep": 5, "ema": [0.5, 0.9], "power_ema": [0.1]}
    train(tiny("diffusion", training=training, sampling={"steps": 4, "interval": [0.01, 20.0]}), folder)
    return folder


def test_two_processes_continue_a_sweep(run: Path, tmp_path: Path) -> None:
    """The second time every point is known, to the first process alone."""
    options = ["--metrics", "fd", "--features", f"encoder={run}", "--count", str(COUNT), "--out", str(tmp_path)]
    arguments = ["sweep", str(run), "--guidance", "1", "3", *options]
    assert main(arguments) == 0
    before = (tmp_path / "sweep.json").read_text()
    assert started.epg(*arguments, processes=2).returncode == 0
    assert json.loads((tmp_path / "sweep.json").read_text())["points"] == json.loads(before)["points"]


def test_points_are_kept_and_a_finer_sweep_adds_to_them(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def sweep(*guidance: float, count: int = COUNT) -> str:
        features = Options(features=[f"encoder={run}"])
        run_sweep(run, Axes(guidance=guidance), words=["fd"], count=count, options=features, out=tmp_path)
        return capsys.readouterr().out

    assert "2 points, 2 of them new" in sweep(1, 3)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.glob("guidance-*.json")}
    assert "3 points, 1 of them new" in sweep(1, 2, 3)
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert "3 points, 0 of them new" in sweep(1, 2, 3)
    assert "2 points, 2 of them new" in sweep(1, 3, count=COUNT + 1)  # another protocol
    damaged = sorted(before)[0]
    damaged.write_text(damaged.read_text()[:-50])
    assert "2 points, 1 of them new" in sweep(1, 3)
    receipt.read(damaged)


def test_points_share_noise_and_say_what_differs(run: Path, tmp_path: Path) -> None:
    """The point with the run's own settings is what `epg evaluate` gives; others differ in the setting alone."""
    arguments = [str(run), "--count", str(COUNT), "--features", f"encoder={run}", "--metrics", "fd"]
    results = run_sweep(
        run,
        Axes(guidance=(1.0, 1.5)),
        words=["fd"],
        count=COUNT,
        options=Options(features=[f"encoder={run}"]),
        out=tmp_path / "sweep",
    )
    assert results is not None
    assert main(["evaluate", *arguments, "--guidance", "1.5", "--out", str(tmp_path / "alone.json")]) == 0
    alone = receipt.read(tmp_path / "alone.json")
    by_guidance = {r.point.guidance: r.receipt for r in results}
    assert by_guidance[1.5].metrics["fd_encoder"].value == alone.metrics["fd_encoder"].value
    assert by_guidance[1.5].samples["pixels"] == alone.samples["pixels"]
    assert by_guidance[1.0].samples["pixels"] != alone.samples["pixels"]
    different = {k for k in alone.samples if by_guidance[1.0].samples[k] != alone.samples[k]}
    assert different <= {"pixels", "sampling", "nfe"}


def test_averages_of_both_kinds_with_the_commands_that_sample_them(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--ema", "0.5", "0.9", "--width", "0.12", "--count", str(COUNT), "--features", f"encoder={run}"]
    assert main(["sweep", str(run), *arguments, "--metrics", "fd", "--out", str(tmp_path / "s")]) == 0
    assert "3 points, 3 of them new" in capsys.readouterr().out
    written = json.loads((tmp_path / "s" / "sweep.json").read_text())
    assert {p["command"] for p in written["points"]} == {
        f"epg sample {run} --ema 0.5",
        f"epg sample {run} --ema 0.9",
        f"epg sample {tmp_path / 's' / 'power-0.12'}",
    }
    values = [p["metrics"]["fd_encoder"]["value"] for p in written["points"]]
    assert values == sorted(values)
    assert len(set(values)) == 2  # so short a run warms both decays up alike
    for i, point in enumerate(written["points"]):
        words = point["command"].split()[1:]
        assert main([*words, "--count", "1", "--out", str(tmp_path / f"samples{i}")]) == 0
    assert Image.open(tmp_path / "s" / "sweep.png").size[0] > 300


def test_golden_search_samples_between_the_ends(run: Path, tmp_path: Path) -> None:
    results = run_sweep(
        run,
        Axes(guidance=(1, 3)),
        golden=True,
        tolerance=0.6,
        metric="precision_encoder",
        words=["pr"],
        count=COUNT,
        options=Options(features=[f"encoder={run}"]),
        out=tmp_path,
    )
    assert results is not None
    tried = sorted(r.point.guidance for r in results if r.point.guidance is not None)
    assert tried[0] == 1
    assert tried[-1] == 3
    assert 1.7639 in tried
    assert 2.2361 in tried
    best = results[0].receipt.metrics["precision_encoder"].value
    assert best == max(r.receipt.metrics["precision_encoder"].value for r in results)  # higher is better


def test_notes_warn_of_the_edge(run: Path, tmp_path: Path) -> None:
    axes = Axes(steps=(2, 3, 4), guidance=(1, 1.5))
    options = Options(features=[f"encoder={run}"])
    results = run_sweep(run, axes, words=["fd"], count=COUNT, options=options, out=tmp_path)
    assert results is not None
    assert rank_by(results, "fd_encoder") == results
    best = results[0].point
    told = " ".join(notes(results, axes, "fd_encoder"))
    assert ("--steps" in told) == (best.steps in (2, 4))
    assert "--guidance" in told
    curves = lines(results, axes, "steps")
    assert set(curves) == {"guidance 1", "guidance 1.5"}
    assert [r.point.steps for r in curves["guidance 1"]] == [2, 3, 4]
    assert np.isfinite([r.receipt.metrics["fd_encoder"].value for r in results]).all()


@pytest.mark.parametrize(
    ("axes", "golden", "message"),
    [
        (Axes(guidance=(1,)), False, "several values"),
        (Axes(guidance=(1, 2, 3)), True, "--golden"),
        (Axes(guidance=(1, 2), steps=(2, 4)), True, "--golden"),
        (Axes(steps=(2, 4)), True, "--golden"),
    ],
)
def test_what_cannot_be_swept_is_refused(axes: Axes, golden: bool, message: str, run: Path) -> None:
    with pytest.raises(UserError, match=message):
        run_sweep(run, axes, golden=golden, count=COUNT)


def test_an_unknown_metric_is_refused_by_name(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--metric fid: not measured; choose from fd_encoder"):
        run_sweep(
            run,
            Axes(guidance=(1, 2)),
            metric="fid",
            words=["fd"],
            count=COUNT,
            options=Options(features=[f"encoder={run}"]),
            out=tmp_path,
        )


def test_few_steps_of_a_one_step_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The best is printed as a command, which runs."""
    run = tmp_path / "run"
    train(tiny("consistency", training={"steps": 2}), run)
    arguments = ["--count", str(COUNT), "--features", f"encoder={run}", "--metrics", "fd", "--out", str(tmp_path / "s")]
    assert main(["sweep", str(run), "--steps", "1", "2", "--between", "0.5", "2.5", *arguments]) == 0
    told = capsys.readouterr().out
    points = json.loads((tmp_path / "s" / "sweep.json").read_text())["points"]
    commands = {p["command"] for p in points}
    assert commands == {f"epg sample {run} --levels {levels}" for levels in ("80", "80 2.5", "80 0.5")}
    assert points[0]["command"] in told
    for i, command in enumerate(sorted(commands)):
        assert main([*command.split()[1:], "--count", "1", "--out", str(tmp_path / f"samples{i}")]) == 0
        nfe = json.loads((tmp_path / f"samples{i}" / "samples.json").read_text())["nfe"]
        assert nfe == len(command.partition("--levels ")[2].split())
