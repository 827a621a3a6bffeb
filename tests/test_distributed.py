"""Two processes equal one: collectives, BatchNorm and NT-Xent, values and gradients."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from epg import distributed
from epg.data.configured import open_training_data
from epg.distributed import all_gather, all_reduce_sum, failing_together, local_device, rank, world_size
from epg.errors import DataError
from epg.losses import nt_xent
from epg.networks.build import build_encoder, build_rcm
from epg.networks.layers import BatchNorm
from epg.objectives.onestep import OneStep
from epg.objectives.pretraining import Pretraining
from tests import started
from tests.helpers import random_batch, randomize, tiny_config, tiny_epg

N, D = 12, 6


def data(seed: int) -> Tensor:
    return torch.randn(N, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def part(x: Tensor) -> Tensor:
    """This process's share of the global batch."""
    n = len(x) // world_size()
    return x[rank() * n :][:n].clone()


def batch_norm_results() -> dict[str, Any]:
    norm = BatchNorm(D).double()
    randomize(norm)
    x = part(data(0)).requires_grad_()
    y = norm(x)
    (y**3 * part(data(1))).sum().backward()
    return {
        "y": y.detach(),
        "x.grad": x.grad,
        "weight.grad": norm.weight.grad,
        "bias.grad": norm.bias.grad,
        "buffers": torch.cat([norm.running_mean, norm.running_var]),
    }


def nt_xent_results() -> dict[str, Any]:
    queries = part(data(2)).requires_grad_()
    loss = nt_xent(queries, part(data(3)), 0.2)
    loss.sum().backward()
    return {"loss": loss.detach(), "queries.grad": queries.grad}


def pretraining_results() -> dict[str, Any]:
    """Loss and gradient of a whole objective on this process's share; gradients averaged as DDP does."""
    config = tiny_config("pretraining")
    rcm = build_rcm(config.model, config.data)
    torch.manual_seed(0)
    for parameter in rcm.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    objective = Pretraining(rcm, config)
    count = config.training.batch_size // world_size()
    losses = objective(objective.draw(random_batch(config, count, first=rank() * count), 5))
    losses["loss"].backward()
    gradient = torch.cat([p.grad.flatten() for p in rcm.parameters() if p.grad is not None])
    return {
        "loss": all_reduce_sum(losses["loss"].detach()) / world_size(),
        "gradient": all_reduce_sum(gradient) / world_size(),
    }


def onestep_results() -> dict[str, Any]:
    """Moments before the first step, and a step, on this process's share; gradients averaged as DDP does."""
    settings = {"levels": [0.2, 1.0], "pixels": 4, "covariance": "class", "recognition_weight": 0.5}
    config = tiny_config("onestep", objective=settings, model={"num_classes": 10})
    network = tiny_epg(config)
    encoder = build_encoder(config.model, config.data)
    randomize(encoder)
    objective = OneStep(network, config, encoder).double()
    objective.dtype = torch.float64
    objective.begin(open_training_data(config.data))
    count = config.training.batch_size // world_size()
    losses = objective(objective.draw(random_batch(config, count, first=rank() * count), 5))
    losses["loss"].backward()
    gradient = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
    return {
        "loss": losses["loss"].detach(),
        "gradient": all_reduce_sum(gradient) / world_size(),
        "moments": torch.cat([value.flatten() for value in objective.moments.buffers()]),
    }


def collectives() -> dict[str, Any]:
    x = (part(data(4)) * 1).requires_grad_()
    total = all_reduce_sum(x)
    (total * part(data(5))).sum().backward()
    return {"sum": total.detach(), "sum.grad": x.grad, "gather": all_gather(part(data(4)))}


def results() -> dict[str, Any]:
    return {
        "batch_norm": batch_norm_results(),
        "nt_xent": nt_xent_results(),
        "pretraining": pretraining_results(),
        "onestep": onestep_results(),
        "collectives": collectives(),
    }


def work(folder: str) -> None:
    dist.init_process_group("gloo")
    torch.save(results(), f"{folder}/{rank()}.pt")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder: Path = tmp_path_factory.mktemp("two")
    started.call(work, folder, processes=2)
    return [torch.load(folder / f"{p}.pt", weights_only=True) for p in range(2)]


@pytest.fixture(scope="module")
def one() -> dict[str, Any]:
    return results()


def joined(two: list[dict[str, Any]], name: str, key: str) -> Tensor:
    return torch.cat([r[name][key] for r in two])


def test_one_process_is_the_identity(one):
    assert (world_size(), rank()) == (1, 0)
    assert torch.equal(one["collectives"]["sum"], data(4))
    assert torch.equal(one["collectives"]["gather"], data(4))


def test_collectives(two):
    halves = data(4).split(N // 2)
    for r in two:
        assert torch.allclose(r["collectives"]["sum"], halves[0] + halves[1])
        assert torch.equal(r["collectives"]["gather"], data(4))
        assert torch.allclose(r["collectives"]["sum.grad"], sum(data(5).split(N // 2)))


def test_batch_norm(one, two):
    for key in ("y", "x.grad"):
        assert torch.allclose(joined(two, "batch_norm", key), one["batch_norm"][key], atol=1e-12)
    for key in ("weight.grad", "bias.grad"):
        total = two[0]["batch_norm"][key] + two[1]["batch_norm"][key]
        assert torch.allclose(total, one["batch_norm"][key], atol=1e-12)
    for r in two:
        assert torch.allclose(r["batch_norm"]["buffers"], one["batch_norm"]["buffers"], atol=1e-12)


def test_nt_xent(one, two):
    for key in ("loss", "queries.grad"):
        assert torch.allclose(joined(two, "nt_xent", key), one["nt_xent"][key], atol=1e-12)


def test_pretraining_objective(one, two):
    for r in two:
        for key in ("loss", "gradient"):
            ours, reference = r["pretraining"][key], one["pretraining"][key]
            assert (ours - reference).norm() < 1e-4 * reference.norm(), key  # float32 sums in another order


def test_onestep_objective(one, two):
    for r in two:
        for key in ("loss", "gradient", "moments"):
            ours, reference = r["onestep"][key], one["onestep"][key]
            assert (ours - reference).norm() < 1e-7 * reference.norm(), key  # roots of what is nearly singular


@pytest.mark.parametrize(
    ("local_rank", "count", "device"),
    [("3", 4, 3), ("1", 8, 1), ("3", 1, 0), (None, 4, 0)],  # several machines; a single one shown to each process
)
def test_a_process_takes_the_device_of_its_place_on_the_machine(
    local_rank: str | None, count: int, device: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "13")  # the place among all processes, on all machines
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if local_rank is not None:
        monkeypatch.setenv("LOCAL_RANK", local_rank)
    assert local_device(count) == device


def test_what_is_wrong_here_is_said_although_the_others_have_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object) -> None:
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_gather_object", gone)
    with pytest.raises(DataError), failing_together():
        raise DataError("images")
    with pytest.raises(RuntimeError, match="Connection closed"), failing_together():
        pass
