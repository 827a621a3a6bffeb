"""R1: `kill -9` at any moment costs at most what was not yet written, and the end is the same to the last bit.

The numbers of the goal (50 and 500 kills of runs of 120 steps) are those of `benchmarks/reliability.py`.
"""

import signal
import time
from pathlib import Path

import pytest

from epg.checkpoint import checkpoint
from tests import started
from tests.reliability.chains import campaign, state_hash
from tests.reliability.driver import Driver
from tests.training.test_loop import tiny

STEPS = 40


@pytest.mark.parametrize("stage", ["pretraining", "diffusion"])
def test_killed_runs_end_identically(stage: str, driver: Driver, tmp_path: Path) -> None:
    figures = campaign(driver, tmp_path / "runs", stage, 5, seed=0, steps=STEPS, aimed=0.5)
    assert figures.broken == []
    assert figures.kills == 5
    assert figures.inside_write >= 1
    assert figures.largest_loss <= 4  # one interval, and one more while the write of the last one is under way


def test_control_a_naive_writer_breaks(driver: Driver, tmp_path: Path) -> None:
    figures = campaign(
        driver, tmp_path / "runs", "diffusion", 3, seed=0, steps=STEPS, aimed=1.0, naive=True, kills_per_chain=1
    )
    assert len(figures.broken) >= figures.chains / 2, figures


def test_a_kill_of_the_command_itself(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(tiny("diffusion", training={"steps": 12, "checkpoint_every": 2, "log_every": 1}).to_yaml())

    def start(name: str) -> started.Program:
        with (tmp_path / f"{name}.log").open("a") as log:
            command = ["-m", "epg.cli", "finetune", config, "--from-scratch", "--out", tmp_path / name]
            return started.start(*command, stdout=log, stderr=log)

    assert start("straight").wait() == [0]
    killed = start("killed")
    while len(checkpoint.listing(tmp_path / "killed" / "checkpoints")) < 2:
        assert killed.running
        time.sleep(0.005)
    killed.signal(signal.SIGKILL)
    assert killed.wait() == [-signal.SIGKILL]
    assert start("killed").wait() == [0]
    assert state_hash(tmp_path / "killed") == state_hash(tmp_path / "straight")
