"""`epg ema` after a real run: the synthesised average against one that was tracked all along."""

import contextlib
from pathlib import Path

import numpy as np
import pytest
import torch

from epg.checkpoint import checkpoint, export
from epg.checkpoint.loading import load
from epg.cli import main
from epg.runs import train
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


def test_few_snapshots_far_from_the_width_still_denoise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two checkpoints and a width outside the tracked ones: a rough average, which is said, and no broken network."""
    training = {"steps": 120, "power_ema": [0.05, 0.1], "checkpoint_every": 60, "log_every": 120}
    run = train(tiny("diffusion", training=training), tmp_path / "run")
    images = torch.from_numpy(np.stack([run.dataset[i][0] for i in range(256)]))
    errors = {}
    for width in (0.075, 0.1, 0.2):
        with pytest.warns(UserWarning, match="0.2: outside the widths") if width == 0.2 else contextlib.nullcontext():
            assert main(["ema", str(tmp_path / "run"), "--sigma-rel", str(width), "--out", str(tmp_path / "made")]) == 0
        model = load(tmp_path / "made")
        clean = model.normalizer.encode(images, torch.float32)
        noisy = clean + 0.3 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            denoised = model.denoiser(noisy, 0.3, torch.tensor(run.dataset.labels[:256]))
        errors[width] = float((denoised - clean).square().mean())
    assert max(errors.values()) < 1.3 * errors[0.1], errors


def test_a_run_without_such_averages_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tiny("diffusion", training={"steps": 1}), tmp_path / "run")
    assert main(["ema", str(tmp_path / "run"), "--sigma-rel", "0.1", "--out", str(tmp_path / "made")]) == 77
    assert "--training.power-ema" in capsys.readouterr().err
    assert main(["ema", str(tmp_path / "run"), "--sigma-rel", "0.5", "--out", str(tmp_path / "made")]) == 2
