"""R8 with every change; 20 random times for each combination are in `benchmarks/reliability.py`."""

import random
import signal
from pathlib import Path

import pytest

from tests.reliability import signals
from tests.reliability.driver import Driver


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
    assert signals.at_random(*signals_to, figures) == ""
    assert figures.signals == 1


def test_control_a_handler_that_does_nothing_is_noticed(driver: Driver, tmp_path: Path, wanted: dict[int, str]) -> None:
    """Nobody asks it to stop, so it trains to the end and does not exit with 75."""
    arguments = (driver, tmp_path / "run", "diffusion", 1, "step", signal.SIGWINCH, [0], wanted[1])
    assert "ended with [0]" in signals.at_a_moment(*arguments)
