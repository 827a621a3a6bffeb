"""D3, D4 with every change: fewer cases than `benchmarks/reliability.py`; and that training leaves global generators
alone."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from epg.config.objectives import Stage
from epg.objectives.base import Losses
from epg.runs import prepare_run
from tests.helpers import change_losses
from tests.reliability import draws
from tests.training.test_loop import STAGES, encoder, tiny  # noqa: F401


def test_the_order_is_a_function_of_seed_and_step() -> None:
    chooser = random.Random(0)
    assert [problem for _ in range(100) if (problem := draws.order_problem(chooser))] == []


def test_control_a_sampler_with_a_state() -> None:
    chooser = random.Random(0)
    assert sum(bool(draws.order_problem(chooser, draws.Stateful())) for _ in range(50)) > 40


def test_any_step_is_reached_at_once() -> None:
    assert draws.seek_seconds() < 1


@pytest.mark.parametrize("batch", [4, 16, 64])
def test_draws_do_not_depend_on_the_division(batch: int) -> None:
    whole = draws.recorded(640, batch, 1, batch)
    for world, micro in [(1, 16), (2, 16), (2, 32), (4, 16)]:
        if batch // world % min(16, batch) == 0 or batch == 64:
            parts = draws.recorded(640, batch, world, micro)
            assert all(torch.equal(whole[name], parts[name]) for name in whole), (world, micro)


def test_no_two_samples_share_a_draw_and_they_are_distributed_as_they_should() -> None:
    drawn = draws.recorded(6_400, 64, 1, 64)
    assert draws.repeated(drawn) == 0
    assert all(p > 1e-3 for p in draws.p_values(drawn).values()), draws.p_values(drawn)


def test_control_draws_that_repeat_or_are_off() -> None:
    drawn = draws.recorded(1280, 64, 1, 64)
    twice = {name: torch.cat([values, values[:3]]) for name, values in drawn.items()}
    assert draws.repeated(twice) == 9
    assert draws.p_values(drawn | {"noise": 0.9 * drawn["noise"]})["noise"] < 1e-3


# Global generators ----------------------------------------------------------------------------------------------------


def global_state() -> list[Any]:
    numbers = np.random.get_state(legacy=True)  # noqa: NPY002
    return [torch.get_rng_state().tolist(), random.getstate(), numbers[1].tolist(), numbers[2]]  # type: ignore[union-attr]


def draws_from_global_generators(stage: Stage, folder: Path, source: Path | None, spoil: bool = False) -> bool:
    """Whether a whole run, previews and all, moved one of them: then something depends on history."""
    run = prepare_run(tiny(stage, training={"preview_every": 4}), folder, encoder=source)
    if spoil:

        def spoilt(step: int, losses: Losses) -> Losses:
            torch.rand(1)
            return losses

        change_losses(run.trainer.objective, spoilt)
    before = global_state()
    run.trainer.run()
    return global_state() != before


@pytest.mark.parametrize("stage", STAGES)
def test_training_draws_nothing_from_global_generators(stage: Stage, tmp_path: Path, encoder: Path) -> None:  # noqa: F811
    assert not draws_from_global_generators(stage, tmp_path, None if stage == "pretraining" else encoder)


def test_control_one_global_number_per_step_is_noticed(tmp_path: Path) -> None:
    assert draws_from_global_generators("diffusion", tmp_path, None, spoil=True)
