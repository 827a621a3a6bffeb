"""F1 with every change: a step with a fault inside it changes nothing, whatever the objective, pass and precision."""

from pathlib import Path

import pytest
import torch

from epg.checkpoint import checkpoint
from epg.errors import DivergedError
from epg.runs import prepare_run
from epg.training.faults import Buffers
from epg.training.loop import Trainer
from tests.reliability import inside
from tests.reliability.driver import Driver
from tests.training.test_loop import STAGES, encoder  # noqa: F401

PASSES = 3


def trainer_of(stage: str, steps: int, folder: Path, encoder: Path, **training: object) -> Trainer:  # noqa: F811
    source = encoder if stage != "pretraining" else None
    return prepare_run(inside.config(stage, steps, passes=PASSES, **training), folder, encoder=source).trainer


def left_out(stage: str, precision: str, folder: Path, encoder: Path) -> list[str]:  # noqa: F811
    """Trains through every fault; what any of them changed."""
    faults = list(inside.faults(stage, PASSES))
    trainer = trainer_of(stage, 2 * len(faults) + 2, folder, encoder, precision=precision)
    trainer.learner.loss_scale.scale = 2.0**14
    original, found = trainer.train_step, []

    def train_step(batches: object) -> object:
        if trainer.step % 2 == 0 or trainer.step > 2 * len(faults):
            return original(batches)  # type: ignore[arg-type]
        place, kind, micro = faults[trainer.step // 2]
        spoiler = inside.Spoiler(trainer.objective, place, kind, trainer.step, micro)
        trainer.settle()
        before = inside.held(trainer)
        result = original(batches)  # type: ignore[arg-type]
        trainer.settle()
        spoiler.remove()
        if not result.losses:  # a huge number may do no harm, in which case the step counts
            found.extend(f"{place}, {kind}: {name}" for name in inside.changed(before, inside.held(trainer)))
        elif kind != "huge":
            found.append(f"{place}, {kind}: not noticed")
        return result

    trainer.train_step = train_step  # type: ignore[method-assign, assignment]
    trainer.run()
    assert all(bool(torch.isfinite(t).all()) for t in inside.held(trainer).values())
    assert checkpoint.find(folder).step == trainer.step
    return found


@pytest.mark.filterwarnings("ignore:step .* not finite")
@pytest.mark.parametrize("precision", ["fp32", "fp16", pytest.param("bf16", marks=pytest.mark.slow)])  # as fp32 does
@pytest.mark.parametrize("stage", STAGES)
def test_a_fault_in_the_forward_pass_changes_nothing(
    stage: str,
    precision: str,
    tmp_path: Path,
    encoder: Path,  # noqa: F811
) -> None:
    assert left_out(stage, precision, tmp_path, encoder) == []


@pytest.mark.filterwarnings("ignore:step .* not finite")
def test_control_statistics_that_are_not_put_back(
    tmp_path: Path,
    encoder: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Buffers, "put_back", lambda self: None)
    with pytest.raises((AssertionError, DivergedError)):
        assert left_out("pretraining", "fp32", tmp_path, encoder) == []


@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_end_as_without_the_step(
    stage: str,
    driver: Driver,
    tmp_path: Path,
    encoder: Path,  # noqa: F811
) -> None:
    fault = (inside.PLACES[stage][1], "nan", 1)
    source = None if stage == "pretraining" else encoder
    assert inside.problem(driver, tmp_path, stage, fault, 2, source) == ""


def test_control_a_gradient_made_finite(driver: Driver, tmp_path: Path) -> None:
    """`nan_to_num` instead of leaving the step out."""
    fault = ("network.encoder.blocks.0", "nan", 0)
    assert inside.problem(driver, tmp_path, "diffusion", fault, 1, None, nan_to_num={}) != ""
