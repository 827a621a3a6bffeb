"""A step that goes well asks the device for nothing that the host would wait for."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from epg.data.configured import open_training_data
from epg.data.loading.loader import BatchLoader
from epg.objectives.base import Objective
from epg.runs import build_objective, prepare_run
from epg.training import learner
from epg.training.loop import Trainer
from epg.training.muon import Muon
from epg.training.optim import make_optimizer
from epg.training.resolving import resolve
from tests.helpers import tiny_config, tiny_epg
from tests.training.test_loop import tiny


class Unread:
    """Stands in for the flags: tensors without numbers, which torch's fake ones are, have none that could be read."""

    def __init__(self, values: Tensor) -> None:
        self.count = len(values)

    def read(self) -> list[float]:
        return [0.0] * self.count


def without_numbers(objective: Objective) -> None:
    """Makes every tensor of a module a fake one: whoever reads a number of it gets DataDependentOutputException."""
    for module in objective.modules():
        for name, p in module._parameters.items():
            if p is not None:
                module._parameters[name] = torch.nn.Parameter(torch.empty(p.shape), requires_grad=p.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
    objective.to = lambda *_: objective  # type: ignore[method-assign, assignment, return-value]  # nothing to move


def take_steps(stage: Any, folder: Path, steps: int, **changes: Any) -> None:
    config = tiny(stage, **changes)
    dataset = open_training_data(config.data)
    config = resolve(config, dataset)
    objective = build_objective(config)
    batches = next(iter(BatchLoader(dataset, batch_size=config.training.batch_size, seed=0)))
    with FakeTensorMode(allow_non_fake_inputs=True):
        without_numbers(objective)
        trainer = Trainer(objective, dataset, config, folder)
        for _ in range(steps):
            trainer.train_step(batches)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("stage", ["diffusion", "consistency"])
def test_a_step_reads_nothing(stage: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but its flags, when the next step begins. (Pre-training computes its level on the host: see test_gpu.)"""
    monkeypatch.setattr(learner, "Answer", Unread)
    changes = {"training": {"precision": precision, "ema": [0.9, 0.99]}, "optimizer": {"clip": 0.5}}
    take_steps(stage, tmp_path, 3, **changes)


def test_control_the_flags_are_what_is_read(tmp_path: Path) -> None:
    take_steps("diffusion", tmp_path, 1)
    with pytest.raises(DataDependentOutputException):
        take_steps("diffusion", tmp_path, 2)


def test_muon_reads_nothing() -> None:
    """On the meta device, where nothing can be read."""
    matrices = [torch.nn.Parameter(torch.empty(shape, device="meta")) for shape in ((8, 8), (24, 8), (8, 8))]
    for matrix in matrices:
        matrix.grad = torch.empty_like(matrix)
    optimizer = Muon(matrices)
    optimizer.found_inf = torch.zeros((), device="meta")
    optimizer.step()


@pytest.mark.parametrize("fine", [True, False])
def test_muon_where_the_host_does_not_know(fine: bool) -> None:
    """As on a GPU: what is computed is taken, to the last bit, or left."""
    outcomes = []
    for told in (None, torch.tensor(fine)):
        generator = torch.Generator().manual_seed(0)
        matrices = [torch.nn.Parameter(torch.randn(8, 24, generator=generator)) for _ in range(2)]
        before = [matrix.detach().clone() for matrix in matrices]
        for matrix in matrices:
            matrix.grad = torch.randn(8, 24, generator=generator) * (1 if fine else math.nan)
        optimizer = Muon(matrices, lr=0.1)
        with torch.no_grad():
            optimizer._update(matrices, optimizer.param_groups[0], told)
        buffers = [optimizer.state[matrix]["momentum_buffer"] for matrix in matrices]
        outcomes.append([*(matrix.detach() for matrix in matrices), *buffers])
    expected = outcomes[0] if fine else [*before, torch.zeros(8, 24), torch.zeros(8, 24)]
    assert all(torch.equal(a, b) for a, b in zip(outcomes[1], expected, strict=True))


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_an_update_that_is_left_out_changes_nothing(kind: str) -> None:
    """Whatever the gradients are, at the first step and later, in weights and in what the optimizer keeps."""
    config = tiny_config("diffusion", optimizer={"kind": kind})
    network = tiny_epg(config)
    optimizer = make_optimizer(network, config.optimizer)

    def update(gradient: float, bad: float) -> dict[str, Tensor]:
        for p in network.parameters():
            p.grad = torch.full_like(p, gradient)
        optimizer.step(bad=torch.tensor(bad))
        state = {f"{n}.{k}": v for n, p in network.named_parameters() for k, v in optimizer.state(p).items()}
        return {name: t.clone() for name, t in {**network.state_dict(), **state}.items()}

    first = update(math.nan, 1.0)
    assert optimizer.updates() == 0
    taken = update(1.0, 0.0)
    assert any(not torch.equal(taken[name], first[name]) for name in first)
    for gradient in (math.nan, math.inf, 1.0):
        after = update(gradient, 1.0)
        assert [name for name in taken if not torch.equal(taken[name], after[name])] == []
    assert optimizer.updates() == 1


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_number_on_the_device_that_says_go_changes_no_bit(kind: str) -> None:
    config = tiny_config("diffusion", optimizer={"kind": kind})
    networks = [tiny_epg(config), tiny_epg(config)]
    for network, bad in zip(networks, (None, torch.tensor(0.0)), strict=True):
        optimizer = make_optimizer(network, config.optimizer)
        generator = torch.Generator().manual_seed(0)
        for _ in range(3):
            for p in network.parameters():
                p.grad = torch.randn(p.shape, generator=generator)
            optimizer.step(bad)
    one, other = (network.state_dict() for network in networks)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_step_is_settled_once_it_is_saved_or_logged(tmp_path: Path) -> None:
    """Averages lag a step behind only as long as nobody looks."""
    trainer = prepare_run(tiny("diffusion"), tmp_path).trainer
    batch = next(iter(BatchLoader(trainer.dataset, batch_size=16, seed=0)))
    before = {name: t.clone() for name, t in trainer.learner.ema.shadows["ema-0.99"].items()}
    trainer.train_step(batch)
    assert all(torch.equal(t, before[name]) for name, t in trainer.learner.ema.shadows["ema-0.99"].items())
    trainer.save()
    assert any(not torch.equal(t, before[name]) for name, t in trainer.learner.ema.shadows["ema-0.99"].items())
    trainer.writer.finish()
