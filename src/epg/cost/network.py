"""What a network costs: parameters and multiply-adds, from its shape."""

from collections.abc import Iterable
from dataclasses import dataclass

from epg.config.sections import DataConfig, ModelConfig
from epg.config.settings import RunConfig
from epg.cost.shape import NetworkShape, shape_of

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


def parts(config: RunConfig) -> dict[str, Cost]:
    """The network that a stage trains, part by part: one forward pass of one image (tables 1, 7 and 8)."""
    shape = shape_of(config.model, config.data, internal=config.internal)
    if not config.objective.samples:
        return {"encoder": encoder_cost(shape), "projector": projector_cost(config.model)}
    embedding = {"class embedding": _embedding(shape)} if shape.num_classes else {}
    head = {"internal head": _internal_head(shape)} if shape.internal else {}
    return {"encoder": encoder_cost(shape), **embedding, "decoder": _decoder(shape), **head}


def alignment_cost(shape: NetworkShape) -> Cost:
    """Of the head that predicts a frozen encoder's patch tokens while a generator trains."""
    return _layer(shape.encoder_width, shape.encoder_width, shape.tokens - 2) * 3


def total(costs: Iterable[Cost]) -> Cost:
    return sum(costs, Cost(0, 0, 0))


def rcm_parameters(model: ModelConfig, data: DataConfig) -> int:
    """Encoder and projector (table 8)."""
    return (encoder_cost(shape_of(model, data)) + projector_cost(model)).parameters


def epg_cost(model: ModelConfig, data: DataConfig) -> Cost:
    """One forward pass of one image (tables 1 and 7)."""
    return generator_cost(shape_of(model, data))


def generator_cost(shape: NetworkShape) -> Cost:
    """One forward pass of one image in a generator of this shape, its internal head included."""
    return encoder_cost(shape) + _decoder(shape) + _embedding(shape) + _internal_head(shape)


def projector_cost(model: ModelConfig) -> Cost:
    """Of one feature vector."""
    width, hidden, out = model.encoder.width, model.projector_hidden, model.projector_out
    layers = ((width, hidden), (hidden, hidden), (hidden, out))
    return total(_layer(*sizes, places=1, bias=False) for sizes in layers) + _free(2 * NORM * hidden)


def _embedding(shape: NetworkShape) -> Cost:
    return _free((shape.num_classes + 1) * shape.encoder_width if shape.num_classes else 0)


def _internal_head(shape: NetworkShape) -> Cost:
    outputs = shape.patch_size**2 * shape.in_channels
    return _layer(shape.encoder_width, outputs, shape.tokens - 2) if shape.internal else Cost(0, 0, 0)


def encoder_cost(shape: NetworkShape) -> Cost:
    """One forward pass of one image in the encoder of a network of this shape."""
    width, tokens = shape.encoder_width, shape.tokens
    features, pixels = shape.stem or shape.in_channels, shape.sample_size**2
    cost = _layer(shape.patch_size**2 * features, width, tokens - 2) + _free((1 + tokens + NORM) * width)
    cost += (_attention_and_mlp(width, shape.mlp_ratio, tokens) + _free(2 * NORM * width)) * shape.depth
    if shape.stem:
        cost += _layer(KERNEL * shape.in_channels, features, pixels) + _layer(KERNEL * features, features, pixels)
    return cost


def _decoder(shape: NetworkShape) -> Cost:
    width, outer, tokens = shape.decoder_width, shape.encoder_width, shape.tokens
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
