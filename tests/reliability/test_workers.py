"""F4 and F5 with every change, small; the sizes of the goals are in `benchmarks/reliability.py`."""

from pathlib import Path

import pytest

from tests.reliability import leaks, workers
from tests.reliability.driver import Driver


@pytest.mark.parametrize("fault", ["SIGKILL", "MemoryError"])
def test_a_loader_process_that_dies_is_named_with_its_image(fault: str, driver: Driver, tmp_path: Path) -> None:
    assert workers.problem(driver, tmp_path / "run", fault) == ""


@pytest.mark.slow
def test_control_a_hanging_loader_without_a_timeout_of_its_own(driver: Driver, tmp_path: Path) -> None:
    """The watchdog ends it, which cannot name the image."""
    assert "ended with [71]" in workers.problem(driver, tmp_path / "run", "SIGSTOP", timeout=1e6)


@pytest.mark.slow
def test_nothing_grows_and_a_hoard_is_noticed(driver: Driver, tmp_path: Path) -> None:
    usage = leaks.measure(driver, tmp_path / "run", 3000, 2)
    assert usage.fine, usage
    assert leaks.measure(driver, tmp_path / "hoard", 3000, 2, hoard={}).slope > leaks.SLOPE
