import math

import pytest
import torch

from epg.config.sections import OptimizerConfig
from epg.networks import EPG
from epg.objectives.consistency import Consistency
from epg.training.muon import Muon, orthogonal
from epg.training.optim import learning_rate, make_optimizer, optimizer_tensors, restore_optimizer
from tests.helpers import relative, tiny_config, tiny_epg

# Groups ---------------------------------------------------------------------------------------------------------------


def test_no_decay_on_position_embedding_and_cls_token():
    network = tiny_epg()
    optimizer = make_optimizer(network, OptimizerConfig(lr=1e-3, betas=(0.9, 0.99), weight_decay=0.03))
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    found = {name: decays[id(p)] for name, p in network.named_parameters()}
    assert {name for name, decay in found.items() if decay == 0} == {
        "encoder.position_embedding",
        "encoder.cls_token",
    }
    assert set(found.values()) == {0, 0.03}
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.99)


def test_frozen_parameters_are_left_out():
    config = tiny_config("consistency")
    objective = Consistency(tiny_epg(config), config, tiny_epg(config, seed=1).encoder)
    optimizer = make_optimizer(objective, config.optimizer)
    chosen = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert chosen == {id(p) for p in objective.network.parameters()}


# Learning rate --------------------------------------------------------------------------------------------------------


def lr(step: int, total: int = 1000, batch: int = 256, **settings: object) -> float:
    settings = {"lr": 0.1, "warmup_steps": 100, **settings}
    return learning_rate(step, total, OptimizerConfig.model_validate(settings), batch)


def test_warm_up_is_linear_and_reaches_the_peak():
    assert [lr(k) for k in range(100)] == pytest.approx([0.1 * (k + 1) / 100 for k in range(100)])
    assert lr(100) == pytest.approx(0.1)


def test_cosine():
    assert lr(550) == pytest.approx(0.05)
    assert lr(325) == pytest.approx(0.05 * (1 + math.cos(math.pi / 4)))
    assert 0 < lr(999) < 1e-6
    assert lr(1000) == pytest.approx(0, abs=1e-17)
    rates = [lr(k) for k in range(100, 1000)]
    assert rates == sorted(rates, reverse=True)


def test_constant():
    assert {lr(k, schedule="constant") for k in range(100, 1000)} == {0.1}


def test_no_warm_up():
    assert lr(0, warmup_steps=0) == pytest.approx(0.1)


@pytest.mark.parametrize("total", [1, 10])
def test_warm_up_longer_than_the_run(total):
    rates = [lr(k, total) for k in range(total)]
    assert rates == pytest.approx([0.1 * (k + 1) / total for k in range(total)])


def test_steps_of_the_rate():
    steps = [(400, 0.03), (500, 0.008)]
    found = {k: lr(k, schedule="constant", lr_steps=steps) for k in (100, 399, 400, 499, 500, 999)}
    assert found == {100: 0.1, 399: 0.1, 400: 0.03, 499: 0.03, 500: 0.008, 999: 0.008}


def test_linear_scaling_with_the_batch():
    assert lr(100, lr_batch_size=1024, batch=256) == pytest.approx(0.025)
    assert lr(100, lr_batch_size=1024, batch=2048) == pytest.approx(0.2)
    assert lr(100, batch=2048) == pytest.approx(0.1)
    assert lr(500, schedule="constant", lr_steps=[(400, 0.04)], lr_batch_size=512) == pytest.approx(0.02)


# State ----------------------------------------------------------------------------------------------------------------


def train(network: EPG, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        g = torch.Generator().manual_seed(step)
        x, c = torch.randn(4, 1, 8, 8, generator=g), torch.randn(4, generator=g)
        optimizer.zero_grad()
        network(x, c, torch.tensor([0, 1, 2, 3])).square().mean().backward()
        optimizer.step()


def test_round_trip_continues_bit_exactly():
    config = OptimizerConfig(lr=1e-2)
    network, other = tiny_epg(), tiny_epg(seed=1)
    optimizer, restored = make_optimizer(network, config), make_optimizer(other, config)
    train(network, optimizer, range(3))
    tensors = {k: v.clone() for k, v in optimizer_tensors(network, optimizer).items()}
    assert len(tensors) == 3 * len(list(network.parameters()))
    other.load_state_dict(network.state_dict())
    restore_optimizer(other, restored, tensors)
    again = optimizer_tensors(other, restored)
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[k], v) and again[k].dtype == v.dtype for k, v in tensors.items())
    train(network, optimizer, range(3, 6))
    train(other, restored, range(3, 6))
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in network.state_dict().items())


def test_missing_state_is_an_error():
    network = tiny_epg()
    optimizer = make_optimizer(network, OptimizerConfig(lr=1e-2))
    train(network, optimizer, range(1))
    tensors = optimizer_tensors(network, optimizer)
    del tensors["encoder.cls_token.exp_avg"]
    with pytest.raises(KeyError, match=r"encoder\.cls_token\.exp_avg"):
        restore_optimizer(network, optimizer, tensors)


# Muon -----------------------------------------------------------------------------------------------------------------


def test_muon_equals_torchs_matrix_by_matrix():
    g = torch.Generator().manual_seed(0)
    shapes = [(8, 8), (24, 8), (8, 24), (8, 8), (24, 8)]
    ours, theirs = ([torch.nn.Parameter(torch.zeros(shape)) for shape in shapes] for _ in range(2))
    optimizers = Muon(ours, lr=0.02), torch.optim.Muon(theirs, lr=0.02)
    for _ in range(4):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn(one.shape, generator=g)
            other.grad = one.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for one, other in zip(ours, theirs, strict=True):
        assert relative(one, other) < 1e-2  # products in bfloat16
        buffers = [o.state[p]["momentum_buffer"] for o, p in zip(optimizers, (one, other), strict=True)]
        assert torch.equal(*buffers)


def test_muon_makes_singular_values_near_one():
    matrices = torch.randn(3, 16, 40, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonal(matrices, (3.4445, -4.7750, 2.0315), 5, 1e-7).float())
    assert float(values.min()) > 0.5
    assert float(values.max()) < 1.5


def test_muon_takes_the_matrices_of_blocks_at_its_own_rate():
    network = tiny_epg()
    optimizer = make_optimizer(network, OptimizerConfig(lr=1e-3, kind="muon", muon_lr=0.05))
    optimizer.set_rate(5e-4)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    fast = {name.rsplit(".", 2)[-2] for name, p in network.named_parameters() if rates[id(p)] == pytest.approx(0.025)}
    assert fast == {"qkv", "proj", "fc1", "fc2", "skip_linear"}
    assert all(rates[id(p)] == pytest.approx(5e-4) for n, p in network.named_parameters() if n.endswith("bias"))
