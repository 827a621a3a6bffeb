"""D2, R7 with every change: few steps; the numbers of the goals are those of `benchmarks/reliability.py`."""

from pathlib import Path

import pytest

from tests.reliability import equality
from tests.reliability.driver import Driver
from tests.training.test_loop import encoder  # noqa: F401

STEPS = 10
WAYS = {
    "pretraining": ["ddp", "fsdp"],  # not accumulation: its negatives are those of a micro-batch
    "diffusion": ["ddp", "fsdp", "accumulation"],
    "consistency": ["ddp", "fsdp", "accumulation"],
}


@pytest.mark.parametrize("stage", WAYS)
def test_one_process_equals_two_equals_accumulation(
    stage: str,
    driver: Driver,
    tmp_path: Path,
    encoder: Path,  # noqa: F811
) -> None:
    found = equality.compare(driver, tmp_path, stage, STEPS, WAYS[stage], encoder)
    assert found.keys() == set(WAYS[stage])
    for way, distance in found.items():
        assert distance.equal, f"{way}: {distance}"
        assert distance.weights < 1e-12, f"{way}: {distance}"  # of few steps


@pytest.mark.parametrize("control", ["uneven_shares", "schedule_by_process"])
def test_control_what_is_not_the_same(control: str, driver: Driver, tmp_path: Path) -> None:
    found = equality.compare(driver, tmp_path, "diffusion", STEPS, ["ddp"], None, **{control: {}})
    assert not found["ddp"].equal
    assert found["ddp"].weights > 1e-6


def test_the_number_of_processes_may_change(driver: Driver, tmp_path: Path) -> None:
    equality.run(driver, tmp_path / "one", equality.config("diffusion", STEPS), record={})
    equality.change_on_the_way(driver, tmp_path / "many", "diffusion", STEPS, (1, 2, 1), "fp64", seed=3)
    distance = equality.distance(tmp_path / "one", tmp_path / "many")
    assert distance.equal, distance


def test_control_noise_that_depends_on_the_rank(driver: Driver, tmp_path: Path) -> None:
    equality.run(driver, tmp_path / "one", equality.config("diffusion", STEPS), record={})
    arguments = ("diffusion", STEPS, (1, 2, 1), "fp64")
    equality.change_on_the_way(driver, tmp_path / "many", *arguments, seed=0, noise_by_rank={})
    assert not equality.distance(tmp_path / "one", tmp_path / "many").equal
