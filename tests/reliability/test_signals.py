"""R8 with every change; 20 random times for each combination are in `benchmarks/reliability.py`."""

import random
import signal
import time
from pathlib import Path

import pytest

from tests.reliability import signals
from tests.reliability.driver import Driver

BUSY = 10  # how much slower a machine with other work may be; what hangs would take an hour


@pytest.fixture(scope="module")
def wanted(driver: Driver, tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """State at the end of an undisturbed run of one and of two processes."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return {n: signals.expected(driver, folder / str(n), "diffusion", n) for n in (1, 2)}


CASES = [*((moment, 1, [0]) for moment in signals.MOMENTS), ("step", 2, [1]), ("save", 2, [0]), ("startup", 2, [1])]


@pytest.mark.parametrize(("moment", "processes", "ranks"), CASES)
def test_a_signal_in_the_middle_of(
    moment: str, processes: int, ranks: list[int], driver: Driver, tmp_path: Path, wanted: dict[int, str]
) -> None:
    number = signals.NUMBERS[signals.MOMENTS.index(moment) % len(signals.NUMBERS)]
    arguments = (driver, tmp_path / "run", "diffusion", processes, moment, number, ranks, wanted[processes])
    assert signals.at_a_moment(*arguments) == ""


@pytest.mark.parametrize(("processes", "twice"), [(1, True), (2, False)])
def test_signals_to_all_after_a_random_time(
    processes: int, twice: bool, driver: Driver, tmp_path: Path, wanted: dict[int, str]
) -> None:
    figures, chooser = signals.Figures(), random.Random(processes)
    signals_to = (driver, tmp_path / "run", "diffusion", processes, None, twice, chooser, 2.0, wanted[processes])
    assert signals.at_random(*signals_to, figures, busy=BUSY) == ""
    assert figures.signals == 1


HELD = ("joining", "startup", "building")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("moment", HELD)
def test_signals_to_all_while_one_waits_for_another_at_the_start(
    moment: str, number: int, driver: Driver, tmp_path: Path, wanted: dict[int, str]
) -> None:
    job, sent = signals.while_held(driver, tmp_path / "run", moment), time.monotonic()
    job.signal(number)
    assert job.wait() == [75, 75], job.said
    assert time.monotonic() - sent < BUSY * signals.QUICK
    assert signals.again(driver, tmp_path / "run", "diffusion", 2, wanted[2]) == ""


@pytest.mark.parametrize("moment", HELD)
def test_a_signal_that_comes_a_moment_after_the_loss_of_another(moment: str, driver: Driver, tmp_path: Path) -> None:
    job = signals.while_held(driver, tmp_path / "run", moment)
    job.signal(signal.SIGTERM, [1])
    time.sleep(0.3)
    job.signal(signal.SIGTERM, [0])
    assert job.wait() == [75, 75], job.said


def test_a_signal_that_comes_a_moment_after_a_death_in_training(driver: Driver, tmp_path: Path) -> None:
    job = signals.while_held(driver, tmp_path / "run", "step", step=5)
    job.signal(signal.SIGKILL, [1])
    time.sleep(0.3)
    job.signal(signal.SIGTERM, [0])
    assert job.wait() == [75, -signal.SIGKILL], job.said
    assert "stopped by SIGTERM while other processes ended" in job.said


def test_a_process_that_was_not_told_to_stop_names_the_one_that_it_lost(driver: Driver, tmp_path: Path) -> None:
    job = signals.while_held(driver, tmp_path / "run", "building")
    job.signal(signal.SIGTERM, [1])
    assert job.wait() == [1, 75], job.said
    assert f"rank 1 (process {job.pids[1]}) has ended" in job.said


def test_control_a_handler_that_does_nothing_is_noticed(driver: Driver, tmp_path: Path, wanted: dict[int, str]) -> None:
    """Nobody asks it to stop, so it trains to the end and does not exit with 75."""
    arguments = (driver, tmp_path / "run", "diffusion", 1, "step", signal.SIGWINCH, [0], wanted[1])
    assert "ended with [0]" in signals.at_a_moment(*arguments)
