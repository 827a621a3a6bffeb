"""One process cannot go on without the others: a failure of one, or a slow disk, concerns all."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from epg.checkpoint import checkpoint
from epg.checkpoint.lock import locked
from epg.training.tracking import JSONLTracker, read_log
from tests.reliability.driver import Driver, run_config


def config(timeout: float = 600.0, steps: int = 8) -> object:
    return run_config("diffusion", steps, training={"batch_size": 32, "checkpoint_every": 3, "timeout": timeout})


@pytest.mark.parametrize("processes", [1, 2])
def test_a_write_longer_than_the_timeout_is_waited_for(processes: int, driver: Driver, tmp_path: Path) -> None:
    """Some forty operations take twice the timeout; nobody takes that for a hang, as the write gets on."""
    job = driver.train(tmp_path / "run", config(1.0), processes=processes, slow_disk={"seconds": 0.06})
    assert set(job.codes) == {0}, job.said
    assert job.seconds > 4
    assert [checkpoint.step_of(p) for p in checkpoint.listing(tmp_path / "run" / "checkpoints")] == [6, 8]


def test_control_a_disk_that_hangs_is_a_hang(driver: Driver, tmp_path: Path) -> None:
    job = driver.train(tmp_path / "run", config(1.5), slow_disk={"seconds": 0.0, "hang_at": 10})
    assert job.codes == [71]
    assert "watchdog: rank 0 completed no step" in job.said


@pytest.mark.parametrize("processes", [1, 2])
def test_an_evaluation_that_waits_for_a_slow_write_is_no_hang(processes: int, driver: Driver, tmp_path: Path) -> None:
    changes = {"evaluation": {"every": 8, "count": 20}}
    training = {"batch_size": 32, "checkpoint_every": 99, "timeout": 1.5}
    settings = run_config("pretraining", 8, training=training, **changes)
    job = driver.train(tmp_path / "run", settings, processes=processes, slow_disk={"seconds": 0.1})
    assert set(job.codes) == {0}, job.said
    assert "evaluation of step 8" in job.said
    assert (tmp_path / "run" / "best.json").is_file()


def slow_preview(timeout: float, every: int) -> object:
    training = {"batch_size": 32, "checkpoint_every": 99, "preview_every": every, "timeout": timeout}
    return run_config("diffusion", 8, training=training, sampling={"steps": 16})


def test_a_preview_longer_than_the_timeout_is_no_hang(driver: Driver, tmp_path: Path) -> None:
    """Every pass of the network takes a tenth of the timeout, and there are 31."""
    job = driver.train(tmp_path / "run", slow_preview(1.5, every=8), processes=2, slow_samples={"seconds": 0.15})
    assert job.codes == [0, 0], job.said
    assert job.seconds > 2 * 1.5


def test_a_preview_that_hangs_is_ended_and_not_met_again(driver: Driver, tmp_path: Path) -> None:
    act = {"what": "sleep", "moment": "preview", "step": 4}
    job = driver.train(tmp_path / "run", slow_preview(1.5, every=4), act=act)
    assert job.codes == [71]
    assert checkpoint.find(tmp_path / "run").step == 4
    Path(f"{tmp_path / 'run'}.acted-0").unlink()
    act = {"what": "sleep", "moment": "preview", "step": 4, "until": 5}  # if it were drawn again
    job = driver.train(tmp_path / "run", slow_preview(60.0, every=4), act=act)
    assert job.codes == [0], job.said


@pytest.mark.parametrize("change", ["renamed", "deleted", "renamed and made anew"])
@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_folder_that_goes_away_is_noticed(change: str, processes: int, driver: Driver, tmp_path: Path) -> None:
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    settings = config(500.0, steps=2000)
    job = driver.start(run, settings, processes=processes)
    while not (run / "checkpoints" / "step-00000003").exists():
        time.sleep(0.05)
    run.rename(elsewhere)
    if change == "deleted":
        shutil.rmtree(elsewhere)
    if change == "renamed and made anew":
        run.mkdir()
    assert job.wait() == [74] * processes, job.said
    assert "run: was renamed or removed while the run was writing to it" in job.said
    if change != "renamed and made anew":  # a write that was just beginning may then begin in the new folder
        assert not (run / "checkpoints").exists()
    assert job.seconds < 400
    if change == "renamed":
        before = checkpoint.find(elsewhere).step
        job = driver.start(elsewhere, settings, processes=processes)
        while checkpoint.find(elsewhere).step <= before:
            time.sleep(0.1)
        job.signal(signal.SIGTERM)
        assert job.wait() == [75] * processes


def test_all_stop_when_the_one_that_writes_finds_something_not_finite(driver: Driver, tmp_path: Path) -> None:
    job = driver.train(tmp_path / "run", config(500.0, steps=500), processes=2, spoil_average={"step": 4})
    assert job.codes == [70, 70]
    assert "is not finite, so no checkpoint was written" in job.said
    assert "rank 0 could not write a checkpoint" in job.said
    assert job.seconds < 400
    assert checkpoint.find(tmp_path / "run").step == 3


def test_all_stop_when_the_folder_is_taken(driver: Driver, tmp_path: Path) -> None:
    with locked(tmp_path / "run"):
        job = driver.train(tmp_path / "run", config(), processes=2)
    assert job.codes == [73, 73]
    assert f"process {os.getpid()} is writing to it" in job.said
    assert "rank 0 failed" in job.said


def test_all_stop_when_one_fails_before_the_first_step(driver: Driver, tmp_path: Path) -> None:
    act = {"what": "exception", "moment": "startup", "ranks": [1]}
    job = driver.train(tmp_path / "run", config(), processes=2, act=act)
    assert job.codes == [1, 1]
    assert "rank 1 failed: an exception for a test" in job.said
    assert job.seconds < 400


def test_a_process_that_ends_without_a_word_is_named_by_the_others(driver: Driver, tmp_path: Path) -> None:
    act = {"what": "exit", "moment": "step", "step": 3, "ranks": [1]}
    job = driver.start(tmp_path / "run", config(), processes=2, act=act)
    pid = job.pids[1]
    assert job.wait() == [1, 0]
    assert f"rank 1 (process {pid}) has ended" in job.said
    assert "rank 0 (process" not in job.said


# The log after a resume -----------------------------------------------------------------------------------------------


def log_of(folder: Path) -> str:
    lines = [json.dumps({"step": step, "loss": 0.5}) for step in range(1, 7)]
    text = "\n".join(lines) + '\n{"step": 7, "lo'
    (folder / "log.jsonl").write_text(text)
    return text


def test_lines_beyond_the_checkpoint_are_dropped_and_a_torn_one(tmp_path: Path) -> None:
    log_of(tmp_path)
    tracker = JSONLTracker(tmp_path, resumed_at=4)
    tracker.log(5, {"loss": 0.25})
    tracker.close()
    assert [line["step"] for line in read_log(tmp_path)] == [1, 2, 3, 4, 5]
    assert [file.name for file in tmp_path.iterdir()] == ["log.jsonl"]


def test_a_crash_while_they_are_dropped_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = log_of(tmp_path)

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    for module, name in ((os, "fsync"), (os, "replace")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, crash)
            with pytest.raises(KeyboardInterrupt):
                JSONLTracker(tmp_path, resumed_at=4)
        assert (tmp_path / "log.jsonl").read_text() == text
