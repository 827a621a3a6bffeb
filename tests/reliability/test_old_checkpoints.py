"""R11: the checkpoints of every released format load, verify, and continue as they did."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from epg.checkpoint import checkpoint, manifest
from epg.checkpoint.loading import load
from epg.cli import main
from epg.errors import ArtefactError
from epg.runs import prepare_run
from tests.reliability.make_golden import MORE, START, golden_config, losses

GOLDEN = sorted((Path(__file__).parent / "golden").iterdir())


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda path: path.name)
def test_ten_further_steps(golden: Path, tmp_path: Path) -> None:
    run = shutil.copytree(golden, tmp_path / "run")
    assert main(["verify", str(run)]) == 0
    trainer = prepare_run(golden_config(keep=3), run).trainer
    trainer.run()
    assert checkpoint.find(run).step == START + MORE
    expected = json.loads((golden / "expected.json").read_text())
    assert losses(run) == pytest.approx(expected["losses"], rel=1e-5)


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda path: path.name)
def test_the_export_samples(golden: Path) -> None:
    model = load(golden / "export")
    images = model.sample(torch.arange(4))
    assert images.shape == (4, 1, 8, 8)


def test_size() -> None:
    for golden in GOLDEN:
        assert sum(file.stat().st_size for file in golden.rglob("*") if file.is_file()) < 300_000


def test_a_setting_added_later(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A checkpoint from before a setting existed loads once the setting is entered in ADDED_SETTINGS, and only then."""
    state = json.loads((GOLDEN[0] / "checkpoints" / f"step-{START:08d}" / "state.json").read_text())
    del state["config"]["training"]["keep_every"]
    with pytest.raises(ArtefactError, match=r"config\.training\.keep_every: missing"):
        manifest.check_state(state, "state.json")
    monkeypatch.setitem(manifest.ADDED_SETTINGS, "training.keep_every", 0)
    manifest.check_state(state, "state.json")


def test_control_a_format_without_migration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Raising FORMAT and forgetting the old one is what these tests are for."""
    run = shutil.copytree(GOLDEN[0], tmp_path / "run")
    monkeypatch.setattr(manifest, "FORMAT", manifest.FORMAT + 1)
    later = (
        f"format {manifest.FORMAT - 1}; this version reads {manifest.FORMAT}. Install the version of epg that wrote it"
    )
    with pytest.raises(ArtefactError, match=later):
        prepare_run(golden_config(keep=3), run)
