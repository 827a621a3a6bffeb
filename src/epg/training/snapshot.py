"""Every tensor of a training run as named groups: gathered for a checkpoint, and put back from one."""

import torch
from torch import Tensor, nn

from epg.checkpoint.checkpoint import Checkpoint
from epg.distributed import failing_together
from epg.errors import ArtefactError
from epg.objectives.base import Objective
from epg.sharding import local, shard_like, whole_on_first
from epg.storage import artefact
from epg.training.ema import EMA
from epg.training.optim import Optimizer, optimizer_tensors, restore_optimizer, zero_moments

Groups = dict[str, dict[str, Tensor]]


def capture(objective: Objective, optimizer: Optimizer, ema: EMA) -> Groups:
    """Whole tensors of weights, moments and averages, where they are sharded in the first process alone; every process
    must call it together."""
    return {
        "model": {name: whole_on_first(value) for name, value in state_of(objective).items()},
        "optimizer": optimizer_tensors(objective, optimizer),
        **{name: ema.state_dict(name) for name in ema.shadows},
    }


def restore(found: Checkpoint, objective: Objective, optimizer: Optimizer, ema: EMA) -> None:
    """The inverse of `capture`; raises ArtefactError, before anything is changed, if a tensor does not fit."""
    with failing_together():
        tensors = read_groups(found, objective, optimizer, ema)
    fill(objective, tensors["model"])
    for name in ema.shadows:
        ema.load(name, tensors[name])
    restore_optimizer(objective, optimizer, tensors["optimizer"])


def read_groups(found: Checkpoint, objective: Objective, optimizer: Optimizer, ema: EMA) -> Groups:
    """Every tensor of a checkpoint, compared with what this run needs."""
    network = objective.network.state_dict()
    expected = {
        "model": state_of(objective),
        "optimizer": zero_moments(objective, optimizer),
        **{name: {**network, **shadow} for name, shadow in ema.shadows.items()},
    }
    if found.groups != expected.keys():
        raise ArtefactError(
            f"{found.path}: holds {', '.join(sorted(found.groups))}; this run needs {', '.join(sorted(expected))}"
        )
    tensors = {name: found.tensors(name) for name in expected}
    for name, group in expected.items():
        artefact.match(tensors[name], group, f"{found.path / name}.safetensors")
    return tensors


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """The module's state, every tensor once: what belongs to two of its parts has two names in `state_dict`."""
    first: dict[int, str] = {}
    named = module.state_dict(keep_vars=True).items()
    return {name: value.detach() for name, value in named if first.setdefault(id(value), name) == name}


@torch.no_grad()
def fill(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Puts whole tensors into a (possibly sharded) module."""
    for name, value in state_of(module).items():
        local(value).copy_(local(shard_like(tensors[name], value)))
