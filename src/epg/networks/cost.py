"""What a model costs: parameters, multiply-adds, tokens. Counted by running the real network on the meta device."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from epg.config.sections import DataConfig, ModelConfig
from epg.networks.build import build_epg, build_rcm
from epg.networks.layers import Attention


@dataclass(frozen=True)
class Cost:
    """`macs` as in the paper's table 1: multiply-adds of linear layers and convolutions, without the attention's
    score and value products; `macs_with_attention` includes those."""

    parameters: int
    macs: int
    macs_with_attention: int


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def rcm_parameters(model: ModelConfig, data: DataConfig) -> int:
    """Encoder and projector (table 8)."""
    with torch.device("meta"):
        return parameters(build_rcm(model, data))


def epg_cost(model: ModelConfig, data: DataConfig) -> Cost:
    """One forward pass of one image (tables 1 and 7)."""
    with torch.device("meta"):
        network = build_epg(model, data)
        image = torch.zeros(1, data.channels, data.image_size, data.image_size)
        labels = torch.zeros(1, dtype=torch.long) if network.num_classes else None
        return Cost(parameters(network), *forward_macs(network, image, torch.zeros(1), labels))


def forward_macs(network: nn.Module, *inputs: Tensor | None) -> tuple[int, int]:
    """Multiply-adds of one forward pass, without and with the attention's products."""
    linear, attention = 0, 0

    def count_linear(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal linear
        weight = module.weight
        assert isinstance(weight, Tensor)
        linear += output.numel() // len(weight) * weight.numel()

    def count_attention(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal attention
        n, tokens, width = args[0].shape
        attention += 2 * n * tokens * tokens * width

    hooks = [
        module.register_forward_hook(count_attention if isinstance(module, Attention) else count_linear)
        for module in network.modules()
        if isinstance(module, nn.Linear | nn.Conv2d | Attention)
    ]
    network(*inputs)
    for hook in hooks:
        hook.remove()
    return linear, linear + attention
