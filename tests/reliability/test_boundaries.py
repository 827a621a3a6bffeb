"""R5 with every change: some boundaries of each stage; all are in `benchmarks/reliability.py`, also with workers."""

from pathlib import Path

import pytest

from tests.reliability import boundaries
from tests.reliability.driver import Driver
from tests.training.test_loop import encoder  # noqa: F401

CHOSEN = {  # of each stage what is particular to it
    "pretraining": ["curriculum changes, stopped", "during a preview, stopped"],
    "diffusion": ["between two micro-batches, crashed", "epoch ends with the step, stopped", "last step, crashed"],
    "consistency": ["first step, crashed", "after the change, stopped"],
}


@pytest.mark.parametrize("stage", CHOSEN)
def test_interrupted_twice_at(stage: str, driver: Driver, tmp_path: Path, encoder: Path) -> None:  # noqa: F811
    options = {"encoder": None if stage == "pretraining" else encoder}
    wanted = boundaries.undisturbed(driver, tmp_path / "undisturbed", stage, **options)
    cases = {name: rest for name, *rest in boundaries.cases(stage)}
    for name in CHOSEN[stage]:
        arguments = (driver, tmp_path / name.replace(" ", "-"), stage, *cases[name], wanted)
        assert boundaries.interrupted(*arguments, **options) == "", name


def test_workers_change_nothing(driver: Driver, tmp_path: Path) -> None:
    wanted = boundaries.undisturbed(driver, tmp_path / "undisturbed", "diffusion")
    arguments = (driver, tmp_path / "workers", "diffusion", "boundary", 6, "SIGTERM", wanted)
    assert boundaries.interrupted(*arguments, uncached={}) == ""


def test_control_a_generator_whose_state_is_not_saved(driver: Driver, tmp_path: Path) -> None:
    wanted = boundaries.undisturbed(driver, tmp_path / "undisturbed", "diffusion", global_generator={})
    arguments = (driver, tmp_path / "broken", "diffusion", "boundary", 6, "SIGTERM", wanted)
    assert boundaries.interrupted(*arguments, global_generator={}) == "ends in another state"
