"""AdamW with the paper's parameter groups, Muon for the blocks' matrices, and the learning rate by step."""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from epg.config.sections import OptimizerConfig
from epg.networks.layers import MLP, Attention, DecoderBlock
from epg.sharding import shard_like, whole_on_first
from epg.training.muon import Muon

NO_DECAY = ("position_embedding", "cls_token")
IN_ENCODER = re.compile(r"(?:^|\.)encoder\.(?:blocks\.(\d+)\.|(?:stem|patch_embedding|position_embedding|cls_token)\b)")
RATE = "rate"  # key of a parameter group: its learning rate relative to the configuration's `lr`


class Optimizer:
    """One or two of torch's optimizers as one, each with parameters of its own."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for part in self.parts for group in part.param_groups]

    def set_rate(self, lr: float) -> None:
        """The configuration's learning rate for the next step; every group has it times its own factor."""
        for group in self.param_groups:
            group["lr"] = lr * group[RATE]

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none)

    def step(self, bad: Tensor | None = None) -> None:
        """One update; none where `bad`, a float32 number on the device that the host need not know, is 1."""
        for part in self.parts:
            part.found_inf = bad  # type: ignore[attr-defined]
            part.step()

    def updates(self) -> int:
        """How many steps have changed the weights."""
        states = [state for part in self.parts for state in part.state.values()]
        return int(max((float(state["step"]) for state in states if "step" in state), default=0))

    def state(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """What is kept of a parameter from step to step; empty before the first."""
        return next((part.state[parameter] for part in self.parts if parameter in part.state), {})

    def zero_state(self) -> Iterator[tuple[nn.Parameter, dict[str, Tensor]]]:
        """Every parameter with what is kept of it before the first step."""
        for part in self.parts:
            for group in part.param_groups:
                for parameter in group["params"]:
                    if isinstance(part, Muon):
                        yield parameter, {"momentum_buffer": torch.zeros_like(parameter)}
                    else:
                        zeros = {key: torch.zeros_like(parameter) for key in ("exp_avg", "exp_avg_sq")}
                        yield parameter, {"step": torch.zeros(()), **zeros}

    def replace_state(self, value: Callable[[nn.Parameter, str], Tensor]) -> None:
        """Replaces what is kept of every parameter by `value(parameter, key)`."""
        keys = {parameter: tuple(state) for parameter, state in self.zero_state()}
        for part in self.parts:
            content = part.state_dict()
            ordered = [p for group in part.param_groups for p in group["params"]]
            content["state"] = {i: {key: value(p, key) for key in keys[p]} for i, p in enumerate(ordered)}
            part.load_state_dict(content)


def make_optimizer(network: nn.Module, config: OptimizerConfig) -> Optimizer:
    """The optimizer over the trainable parameters; no weight decay on the position embedding and the CLS token."""
    matrices = block_matrices(network) if config.kind == "muon" else {}
    trained = [(name, parameter) for name, parameter in network.named_parameters() if parameter.requires_grad]
    rates = layer_rates([name for name, _ in trained], config.layer_decay)

    def groups(kind: type[torch.optim.Optimizer]) -> list[dict[str, Any]]:
        members: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
        for name, parameter in trained:
            if (parameter in matrices) == (kind is Muon):
                decay = 0.0 if name.rsplit(".", 1)[-1] in NO_DECAY else config.weight_decay
                members[decay, rates[name] * (config.muon_lr / config.lr if kind is Muon else 1)].append(parameter)
        return [{"params": found, "weight_decay": decay, RATE: rate} for (decay, rate), found in members.items()]

    adamw = torch.optim.AdamW(groups(torch.optim.AdamW), lr=config.lr, betas=config.betas, fused=True)
    return Optimizer(adamw, Muon(groups(Muon), lr=config.muon_lr)) if matrices else Optimizer(adamw)


def layer_rates(names: list[str], decay: float) -> dict[str, float]:
    """The rate of every parameter relative to the configuration's, by its place in the encoder: `decay` to the number
    of blocks from it to the encoder's end. 1 for its last norm and for what is not in an encoder."""
    found = {name: IN_ENCODER.search(name) for name in names}
    places = {name: int(match[1] or -1) for name, match in found.items() if match}
    depth = 1 + max(places.values(), default=-1)
    return {name: decay ** (depth - places[name]) if name in places else 1.0 for name in names}


def block_matrices(network: nn.Module) -> dict[nn.Parameter, None]:
    """The trained hidden matrices of transformer blocks, in order: attention, MLP and the fusion of skips."""
    layers: list[nn.Linear] = []
    for module in network.modules():
        if isinstance(module, Attention):
            layers += [module.qkv, module.proj]
        elif isinstance(module, MLP):
            layers += [module.fc1, module.fc2]
        elif isinstance(module, DecoderBlock):
            layers.append(module.skip_linear)
    return {layer.weight: None for layer in layers if layer.weight.requires_grad}  # type: ignore[misc]


def optimizer_tensors(network: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """Moments and step counts by parameter name: `<parameter>.exp_avg` and so on; zeros before the first update."""
    made = {
        f"{name}.{key}": value
        for name, parameter in network.named_parameters()
        for key, value in optimizer.state(parameter).items()
    }
    return {name: whole_on_first(value) for name, value in (made or zero_moments(network, optimizer)).items()}


def zero_moments(network: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """What `optimizer_tensors` has before the first update, sharded as the parameters are."""
    names = {parameter: name for name, parameter in network.named_parameters()}
    return {f"{names[p]}.{key}": value for p, state in optimizer.zero_state() for key, value in state.items()}


def restore_optimizer(network: nn.Module, optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`; raises KeyError where a parameter's state is missing."""
    names = {parameter: name for name, parameter in network.named_parameters()}
    optimizer.replace_state(lambda parameter, key: _like(parameter, tensors[f"{names[parameter]}.{key}"]))


def _like(parameter: Tensor, value: Tensor) -> Tensor:
    """A moment sharded as its parameter is; the step count is a number and stays whole."""
    return shard_like(value, parameter) if value.ndim else value


def learning_rate(step: int, total_steps: int, config: OptimizerConfig, batch_size: int) -> float:
    """Learning rate of the update that follows `step` completed ones: linear warm-up, then the schedule."""
    peak = config.lr
    for start, lr in config.lr_steps:
        if step >= start:
            peak = lr
    if config.lr_batch_size is not None:
        peak *= batch_size / config.lr_batch_size
    warmup = min(config.warmup_steps, total_steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    if config.schedule == "constant":
        return peak
    progress = (step - warmup) / max(1, total_steps - warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))
