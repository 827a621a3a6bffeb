"""F3 with every change: one death under torchrun, which starts the processes again; the others in `benchmarks`."""

from pathlib import Path

import pytest

from tests.reliability import launched
from tests.reliability.chains import state_hash
from tests.reliability.driver import Driver, run_config


@pytest.fixture(scope="module")
def wanted(driver: Driver, tmp_path_factory: pytest.TempPathFactory) -> str:
    """State at the end of an undisturbed run."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    training = {"batch_size": 32, "timeout": launched.TIMEOUT, "checkpoint_every": 3}
    job = driver.train(folder, run_config("diffusion", launched.STEPS, training=training), processes=2)
    assert job.codes == [0, 0], job.said
    assert "bucket view" not in job.said
    assert "deprecated" not in job.said
    return state_hash(folder)


def test_a_killed_process_is_named_and_the_job_starts_again_by_itself(tmp_path: Path, wanted: str) -> None:
    outcome = launched.torchrun(tmp_path / "run", "SIGKILL", restarts=1)
    assert outcome.code == 0, outcome.said[-3000:]
    assert outcome.orphans == []
    assert "local_rank: 1" in outcome.said
    assert "resumed from" in outcome.said
    assert state_hash(tmp_path / "run") == wanted


@pytest.mark.slow
@pytest.mark.parametrize("fault", launched.FAULTS)
def test_every_fault(fault: str, tmp_path: Path, wanted: str) -> None:
    problem, _ = launched.problem(tmp_path / "run", fault, wanted)
    assert problem == ""
