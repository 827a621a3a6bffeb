"""What a model costs: parameters and multiply-adds, from its shape by arithmetic, or counted in a forward pass."""

from dataclasses import dataclass

from torch import Tensor, nn

from epg.config.sections import DataConfig, ModelConfig
from epg.networks.build import shape_of
from epg.networks.layers import Attention
from epg.networks.shape import NetworkShape

NORM = 2  # parameters of a channel
KERNEL = 3 * 3  # of the convolutions of stem and head


@dataclass(frozen=True)
class Cost:
    """`macs` as in the paper's table 1: multiply-adds of linear layers and convolutions, without the attention's
    score and value products; `macs_with_attention` includes those."""

    parameters: int
    macs: int
    macs_with_attention: int

    def __add__(self, other: "Cost") -> "Cost":
        own, others = vars(self).values(), vars(other).values()
        return Cost(*(a + b for a, b in zip(own, others, strict=True)))

    def __mul__(self, times: int) -> "Cost":
        return Cost(*(times * number for number in vars(self).values()))


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def rcm_parameters(model: ModelConfig, data: DataConfig) -> int:
    """Encoder and projector (table 8)."""
    width, hidden, out = model.encoder.width, model.projector_hidden, model.projector_out
    projector = hidden * (width + hidden + out) + 2 * NORM * hidden
    return _encoder(shape_of(model, data)).parameters + projector


def epg_cost(model: ModelConfig, data: DataConfig) -> Cost:
    """One forward pass of one image (tables 1 and 7)."""
    return generator_cost(shape_of(model, data))


def generator_cost(shape: NetworkShape) -> Cost:
    """One forward pass of one image in a generator of this shape."""
    embedding = (shape.num_classes + 1) * shape.encoder_width if shape.num_classes else 0
    return _encoder(shape) + _decoder(shape) + _free(embedding)


def _encoder(shape: NetworkShape) -> Cost:
    width, tokens = shape.encoder_width, _tokens(shape)
    features, pixels = shape.stem or shape.in_channels, shape.sample_size**2
    cost = _layer(shape.patch_size**2 * features, width, tokens - 2) + _free((1 + tokens + NORM) * width)
    cost += (_attention_and_mlp(width, shape.mlp_ratio, tokens) + _free(2 * NORM * width)) * shape.depth
    if shape.stem:
        cost += _layer(KERNEL * shape.in_channels, features, pixels) + _layer(KERNEL * features, features, pixels)
    return cost


def _decoder(shape: NetworkShape) -> Cost:
    width, outer, tokens = shape.decoder_width, shape.encoder_width, _tokens(shape)
    features, pixels = shape.stem or shape.in_channels, shape.sample_size**2
    block = _attention_and_mlp(width, shape.mlp_ratio, tokens) + _free(3 * NORM * width)
    block += _layer(width + outer, width, tokens) + _layer(outer, 6 * width, 1)
    cost = block * shape.depth + _free(NORM * width) + _layer(width, shape.patch_size**2 * features, tokens - 2)
    if outer != width:
        cost += _layer(outer, width, tokens)
    if shape.stem:
        cost += _layer(KERNEL * 2 * features, features, pixels)
        cost += _layer(KERNEL * features, shape.in_channels, pixels)
    return cost


def _tokens(shape: NetworkShape) -> int:
    return (shape.sample_size // shape.patch_size) ** 2 + 2


def _attention_and_mlp(width: int, ratio: float, tokens: int) -> Cost:
    hidden = int(width * ratio)
    layers = _layer(width, width, tokens) + _layer(width, hidden, tokens) + _layer(hidden, width, tokens)
    return layers + _layer(width, 3 * width, tokens, bias=False) + Cost(0, 0, 2 * tokens**2 * width)


def _layer(inputs: int, outputs: int, places: int, bias: bool = True) -> Cost:
    """A linear layer, or a convolution with so many numbers under its kernel, at so many places."""
    macs = places * inputs * outputs
    return Cost((inputs + bias) * outputs, macs, macs)


def _free(numbers: int) -> Cost:
    """Parameters that cost nothing, as multiply-adds are counted."""
    return Cost(numbers, 0, 0)


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
