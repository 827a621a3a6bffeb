"""AdamW with the paper's parameter groups, and the learning rate as a function of the step."""

import math

import torch
from torch import Tensor, nn

from epg.config import OptimizerConfig
from epg.distributed import full, shard_like

NO_DECAY = ("position_embedding", "cls_token")


def make_optimizer(network: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; no weight decay on the position embedding and the CLS token."""
    decay: list[nn.Parameter] = []
    no_decay: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            (no_decay if name.rsplit(".", 1)[-1] in NO_DECAY else decay).append(parameter)
    groups = [
        {"params": decay, "weight_decay": config.weight_decay},
        {"params": no_decay, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.lr, betas=config.betas, fused=True)


def optimizer_tensors(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Moments and step counts by parameter name: `<parameter>.exp_avg` and so on; zeros before the first update."""
    made = {
        f"{name}.{key}": value
        for name, parameter in network.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }
    return {name: full(value) for name, value in (made or zero_moments(network)).items()}


def zero_moments(network: nn.Module) -> dict[str, Tensor]:
    """What `optimizer_tensors` has before the first update, sharded as the parameters are."""
    moments: dict[str, Tensor] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            moments[f"{name}.step"] = torch.zeros(())
            moments[f"{name}.exp_avg"] = torch.zeros_like(parameter)
            moments[f"{name}.exp_avg_sq"] = torch.zeros_like(parameter)
    return moments


def restore_optimizer(network: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`; raises KeyError where a parameter's state is missing."""
    names = {parameter: name for name, parameter in network.named_parameters()}
    state = optimizer.state_dict()
    ordered = [p for group in optimizer.param_groups for p in group["params"]]
    keys = ("step", "exp_avg", "exp_avg_sq")
    state["state"] = {i: {key: _like(p, tensors[f"{names[p]}.{key}"]) for key in keys} for i, p in enumerate(ordered)}
    optimizer.load_state_dict(state)


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
