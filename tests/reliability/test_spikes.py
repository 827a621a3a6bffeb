"""F2 with every change: few trials; the numbers of the goal are those of `benchmarks/reliability.py`."""

import json
import math
import random
from pathlib import Path

import pytest

from epg.checkpoint import checkpoint
from epg.cli import main
from epg.training.spikes import SpikeDetector
from tests.reliability import spikes
from tests.reliability.driver import Driver
from tests.training.test_loop import encoder  # noqa: F401


def test_spikes_are_noticed_and_nothing_else(tmp_path: Path) -> None:
    """And the controls, on the same losses: no threshold that is ever reached, and one that everything reaches."""
    spikes.train(tmp_path, "diffusion", 10, None)
    wanted = spikes.raised_steps(10)
    found = spikes.noticed(tmp_path, wanted)
    assert (found.raised, found.found, found.alarms) == (10, 10, 0)
    assert spikes.noticed(tmp_path, wanted, SpikeDetector()) == found
    assert spikes.noticed(tmp_path, wanted, SpikeDetector(factor=math.inf)).found == 0
    assert spikes.noticed(tmp_path, wanted, SpikeDetector(factor=1, sigmas=0)).alarms > 0


@pytest.mark.parametrize(("kind", "cause"), [("data", "data"), ("loss", "machine")])
def test_causes_are_told_apart(kind: str, cause: str, driver: Driver, tmp_path: Path) -> None:
    assert spikes.told_apart(driver, tmp_path, kind, random.Random(0)) == cause


@pytest.mark.parametrize("bit", [23, 30])
def test_a_flipped_bit_is_the_machines_small_or_infinite(
    bit: int, driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half or twice a gradient; and one so large that its step is left out."""
    monkeypatch.setattr(spikes, "BITS", [bit])
    assert spikes.told_apart(driver, tmp_path, "bit", random.Random(0)) == "machine"


def test_control_numbers_with_a_history(driver: Driver, tmp_path: Path) -> None:
    """With noise from a global generator the same batch gives other numbers, and the machine is blamed for it."""
    assert spikes.told_apart(driver, tmp_path, "data", random.Random(0), global_generator={}) == "machine"


@pytest.mark.parametrize("stage", ["pretraining", "diffusion", "consistency"])
def test_a_batch_is_left_out(stage: str, driver: Driver, tmp_path: Path, encoder: Path) -> None:  # noqa: F811
    source = None if stage == "pretraining" else encoder
    assert spikes.rolled_back(driver, tmp_path, stage, 5, source) == ""


def test_control_a_batch_that_stays(driver: Driver, tmp_path: Path) -> None:
    assert "model" in spikes.rolled_back(driver, tmp_path, "diffusion", 5, None, leave=False)


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Refused without a word that it may change; recorded; a step that is none is named."""
    common = ["finetune", "digits", "--training.steps", "4", "--training.batch-size", "8", "--training.device", "cpu"]
    common += ["--training.preview-every", "0", "--training.checkpoint-every", "2"]
    assert main([*common, "--from-scratch", "--out", str(tmp_path / "run")]) == 0
    back = [*common, "--resume", str(tmp_path / "run/checkpoints/step-00000002"), "--out", str(tmp_path / "back")]
    back += ["--training.leave-out"]
    assert main([*back, "3"]) == 2
    assert "training.leave_out: [] -> [3]" in capsys.readouterr().err
    assert main([*back, "4", "--override", "training.leave_out"]) == 2
    assert "--training.leave-out 4: the steps are 0 to 3" in capsys.readouterr().err
    assert main([*back, "0", "1", "2", "3"]) == 2
    assert "--training.leave-out: leaves none of the 4 steps" in capsys.readouterr().err
    assert main([*back, "3", "--override", "training.leave_out"]) == 0
    capsys.readouterr()
    assert main(["pretrain", *common[1:], "--training.leave-out", "1", "3", "--out", str(tmp_path / "encoder")]) == 0
    (following,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Next:")]
    assert "--training.steps 4" in following
    assert "leave-out" not in following  # a bad batch of this run is none of the next one
    (event,) = checkpoint.find(tmp_path / "back").state["history"]
    assert event["changed"] == {"training.leave_out": [[], [3]]}
    steps = [json.loads(line) for line in (tmp_path / "back/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps] == [4]
