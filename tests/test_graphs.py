"""Losses and samplers as graphs: what is drawn comes in, and nothing in between asks the host for a number."""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from epg.config.sections import SamplingConfig
from epg.data.views.augment import AffineViews, MocoViews, Views, made
from epg.objectives.base import Objective
from epg.objectives.consistency import Consistency
from epg.objectives.onestep import OneStep
from epg.randomness import drawn, key, normal, normal_of, philox_state, uniform_of
from epg.runs import build_objective
from tests.generators import tiny_generator
from tests.helpers import random_batch, tiny_epg
from tests.precisions import OBJECTIVES, objective_of, wide

KINDS = (*OBJECTIVES, "dropout", "onestep")


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def made_of(kind: str) -> Objective:
    if kind == "onestep":
        config = wide("onestep", objective={"covariance": "class", "recognition_weight": 1.0})
        return OneStep(tiny_epg(config), config, tiny_epg(config, seed=1).encoder).train()
    if kind != "dropout":
        return objective_of(kind).train()
    return Consistency(tiny_epg(wide("consistency")), wide("consistency")).train()


class Unread(TorchDispatchMode):
    """Nobody reads a number of a tensor, nor a shape that depends on one: on an accelerator the host would wait."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.name() not in ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select"), func
        return func(*args, **(kwargs or {}))


def gradient(objective: Objective) -> Tensor:
    return torch.cat([p.grad.flatten() for p in objective.parameters() if p.grad is not None])


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_one_graph(kind: str) -> None:
    """A whole forward pass without a break, the same to the last bit, and not compiled anew for another step."""
    plain, compiled = made_of(kind), made_of(kind)
    graph = torch.compile(compiled, backend="eager", fullgraph=True)
    batch = random_batch(wide("diffusion"))
    for step in (3, 700):
        with torch.compiler.set_stance("default" if step == 3 else "fail_on_recompile"):
            losses = graph(compiled.draw(batch, step))
        expected = plain(plain.draw(batch, step))
        assert all(torch.equal(losses[name], expected[name]) for name in expected)
        for loss in (losses, expected):
            loss["loss"].backward()
        assert torch.equal(gradient(compiled), gradient(plain))


@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_is_a_function_of_what_was_drawn_and_reads_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    objective = made_of(kind)
    drawn = objective.draw(random_batch(wide("diffusion")), 3)
    before = {name: values.clone() for name, values in drawn.items()}
    with Unread():
        first = objective(drawn)["loss"]
        first.backward()
    assert torch.equal(objective(drawn)["loss"], first)
    assert all(torch.equal(values, before[name]) for name, values in drawn.items())
    for name in ("normal", "uniform", "shared_integer"):
        monkeypatch.setattr(f"epg.randomness.Draws.{name}", None)
    assert torch.equal(objective(drawn)["loss"], first)
    changed = {**drawn, "noise": drawn["noise"].flip(0)}
    assert not torch.equal(objective(changed)["loss"], first)


def test_every_level_of_a_grid_is_one_graph() -> None:
    """Guidance comes and goes along it: a graph for each way, and none for each level."""
    generator = tiny_generator()
    sampling = SamplingConfig(sampler="heun", steps=12, guidance=2.0)
    labels = torch.tensor([0, 1])
    denoise = generator.denoiser_for(labels, sampling)
    graph = torch.compile(denoise, backend="eager", fullgraph=True)
    with torch._dynamo.config.patch(recompile_limit=5, fail_on_recompile_limit_hit=True):
        drawn = generator.walk(graph, [0, 1], sampling=sampling)
    assert torch.equal(drawn, generator.walk(denoise, [0, 1], sampling=sampling))


@pytest.mark.parametrize("kind", [normal_of, uniform_of])
def test_random_numbers_are_one_graph_for_every_key_and_count(kind: Callable[[Tensor], Tensor]) -> None:
    """So that they are compiled once, for all that a run draws; and they are numpy's."""
    draw = torch.compile(partial(drawn, kind), backend="eager", dynamic=True, fullgraph=True)
    for count, secret, first in ((40, key("a"), 1), (50, key("b"), 2**61 + 5), (3_000, 2**128 - 1, 7)):
        with torch.compiler.set_stance("default" if count == 40 else "fail_on_recompile"):
            found = draw(*philox_state(secret, first, "cpu"), count)
        words = np.random.Philox(key=secret, counter=first - 1).random_raw(4 * count)
        assert torch.equal(found, kind(torch.from_numpy(words.view(np.int32)).view(count, 8)))


@pytest.mark.parametrize("views", [MocoViews(), AffineViews()])
def test_the_views_of_an_accelerator_are_one_graph(views: Views, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of them asks the device for a number: on the meta device there is none to ask for."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # does not know that device
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(made, backend=backend, fullgraph=True)
    monkeypatch.setattr("epg.data.views.augment.compiled", lambda: compiled)
    images, uniform = torch.empty(4, 3, 16, 16, dtype=torch.uint8), torch.empty(4, views.numbers)
    for number in (0, 1):
        view = views(images.to("meta"), uniform.to("meta"), number, fused=True)
        assert (view.shape, view.dtype) == (images.shape, torch.float32)
        assert graphs


@pytest.mark.parametrize("kind", ["pretraining", "diffusion", "consistency"])
@pytest.mark.parametrize("compiled", [False, True])
def test_what_is_drawn_is_compiled_where_training_is(
    kind: str, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def noted(*args: Any, fused: bool = False, **kwargs: Any) -> Tensor:
        asked.append(fused)
        return normal(*args, **kwargs)

    def seen(self: Views, images: Tensor, uniform: Tensor, number: int, fused: bool = False) -> Tensor:
        asked.append(fused)
        return plain(self, images, uniform, number)

    plain = Views.__call__
    monkeypatch.setattr("epg.randomness.normal", noted)
    monkeypatch.setattr(Views, "__call__", seen)
    config = wide(kind)
    training = config.training.model_copy(update={"compile": compiled})
    objective = build_objective(config.model_copy(update={"training": training}))
    objective.draw(random_batch(config), 0)
    assert asked == [compiled] * (3 if kind == "pretraining" else 2)  # two views; levels and noise
