"""The plain step that benchmarks compare with computes the same."""

import math
from types import ModuleType

import pytest
import torch

from epg.objectives.diffusion import Diffusion
from tests.helpers import random_batch, script, tiny_config, tiny_epg


@pytest.fixture(scope="module")
def plain() -> ModuleType:
    return script("plain")


def test_loss_and_gradient_are_those_of_the_objective(plain: ModuleType) -> None:
    config = tiny_config("diffusion")
    objective = Diffusion(tiny_epg(config).train(), config)
    run, drawn = plain.PlainRun(objective, config), objective.draw(random_batch(config), 3)
    loss, expected = run.loss(drawn), objective(drawn)["loss"]
    assert math.isclose(loss.item(), expected.item(), rel_tol=1e-5)
    loss.backward()
    expected.backward()
    for name, parameter in run.network.named_parameters():
        gradient = objective.network.get_parameter(name).grad
        assert torch.allclose(parameter.grad, gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max())), name


def test_it_runs(plain: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    plain.main(["digits", "--pairs", "1", "--block-steps", "1", "--training.batch-size", "8"])
    assert "digits: plain" in capsys.readouterr().out
