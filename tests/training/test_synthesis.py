"""`epg ema` after a real run: the synthesised average against one that was tracked all along."""

from pathlib import Path

import pytest
import torch

from epg.cli import main
from epg.loading import load
from epg.runs import train
from epg.training import checkpoint, export
from tests.training.test_loop import tiny


def test_synthesis_is_closer_than_any_snapshot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same run twice: once with the widths that are combined, once with the one that is wanted."""
    training = {"steps": 60, "power_ema": [0.05, 0.1], "checkpoint_every": 4, "keep": 15, "log_every": 20}
    train(tiny("diffusion", training=training), tmp_path / "run")
    train(tiny("diffusion", training={**training, "power_ema": [0.075]}), tmp_path / "direct")
    direct = checkpoint.find(tmp_path / "direct").tensors("power-0.075")
    both = {width: checkpoint.find(tmp_path / "run").tensors(f"power-{width}") for width in (0.05, 0.1)}

    assert main(["ema", str(tmp_path / "run"), "--sigma-rel", "0.075", "--out", str(tmp_path / "made")]) == 0
    assert "30 snapshots" in capsys.readouterr().out
    made = export.read(tmp_path / "made").tensors()

    def distance(a: dict[str, torch.Tensor]) -> float:
        return sum(float((a[name] - direct[name]).square().sum()) for name in direct) ** 0.5

    assert distance(made) < 0.25 * min(distance(weights) for weights in both.values())
    assert load(tmp_path / "made").num_classes == 10  # it samples like any export


def test_a_run_without_such_averages_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tiny("diffusion", training={"steps": 1}), tmp_path / "run")
    assert main(["ema", str(tmp_path / "run"), "--sigma-rel", "0.1", "--out", str(tmp_path / "made")]) == 77
    assert "--training.power-ema" in capsys.readouterr().err
    assert main(["ema", str(tmp_path / "run"), "--sigma-rel", "0.5", "--out", str(tmp_path / "made")]) == 2
