"""What training keeps in a device's memory, part by part."""

from dataclasses import dataclass

from epg.config.settings import RunConfig
from epg.cost.network import alignment_cost, encoder_cost, generator_cost, projector_cost
from epg.cost.shape import NetworkShape, shape_of

FULL = 4  # bytes of a number in float32
GIVEN = 10  # times the width, by a block's products and attention: 3 + 1 + 1 + 4 + 1


@dataclass(frozen=True)
class Memory:
    """Bytes on one device. What a device needs beside these (libraries, buffers of a product) is not in it."""

    weights: float
    """Of the trained network and of those that it learns from."""
    gradients: float
    optimizer: float
    averages: float
    activations: float
    """Of one pass, until its backward pass, with the copies of weights in half precision."""

    @property
    def total(self) -> float:
        return sum(vars(self).values())


def memory(config: RunConfig, images: int, *, checkpointing: bool, devices: int = 1) -> Memory:
    """Of a training step.

    Args:
        images: that one device passes through the network at once.
        checkpointing: whether only the inputs of blocks are kept (`training.activation_checkpointing`), and with
            `training.keep_products` what its products give.
        devices: that share weights, gradients, optimizer and averages (FSDP); 1 where each has them all.
    """
    shape, objective = shape_of(config.model, config.data, internal=config.internal), config.objective
    kept, networks = objective.work.kept, objective.work.still
    sizes = (encoder_cost(shape), projector_cost(config.model), generator_cost(shape))
    network = (sizes[2] if objective.samples else sizes[0] + sizes[1]).parameters
    frozen = config.optimizer.frozen_encoder * sizes[0].parameters
    trained = network - frozen + config.objective.aligned * alignment_cost(shape).parameters
    still = frozen + sum(times * size.parameters for times, size in zip(networks, sizes, strict=True))
    averages = len(config.training.ema) + len(config.training.power_ema)
    moments = 1 if config.optimizer.kind == "muon" else 2  # Muon keeps one of the matrices, which are nearly all
    number = FULL if config.training.precision in ("fp32", "fp64", "auto") else 2
    keeping = Keeping(number, checkpointing, config.training.keep_products)
    activations = images * (
        kept.encoder * encoder_bytes(shape, keeping, frozen=objective.samples)
        + kept.generator * decoder_bytes(shape, keeping)
        + kept.generator * (not frozen) * encoder_bytes(shape, keeping)
    )
    share = FULL / devices
    return Memory(
        weights=share * (trained + still),
        gradients=share * trained,
        optimizer=share * moments * trained,
        averages=share * averages * network,
        activations=activations + (0 if number == FULL else number * (trained + still)),
    )


@dataclass(frozen=True)
class Keeping:
    """What blocks keep for the backward pass."""

    number: int
    """Bytes of what goes into products."""
    checkpointing: bool
    products: bool
    """With checkpointing: what products give, too."""

    def blocks(self, depth: int, block: float, width: float, given: float) -> float:
        """Bytes of a token in all blocks; of checkpointed ones their inputs, and all of the one that is computed again.

        Args:
            block: bytes of all that one keeps.
            given: numbers that its products and its attention give.
        """
        if not self.checkpointing:
            return depth * block
        return depth * (FULL * width + self.products * self.number * given) + block


def encoder_bytes(shape: NetworkShape, keeping: Keeping, frozen: bool = False) -> float:
    """Kept of one image in the encoder: of each token in each block the residual stream before both norms, in float32,
    and what the linear layers, the attention (with its logarithms of sums) and GELU take, in the precision of
    products; what a linear layer takes is not kept where its weights are `frozen`. Of each pixel the three steps of a
    stem."""
    width, number = shape.encoder_width, keeping.number
    block = (8.25 + (8 if frozen else 14) * number) * width
    tokens = keeping.blocks(shape.depth, block, width, GIVEN * width) + 5.5 * width
    return shape.tokens * tokens + 3 * number * shape.stem * shape.sample_size**2


def decoder_bytes(shape: NetworkShape, keeping: Keeping) -> float:
    """The same of the decoder, whose blocks also keep the fused skip, its norm, and both sides of each modulation; of
    each pixel the head's input, with the stem's output, and its two steps."""
    width, number = shape.decoder_width, keeping.number
    block = (20.25 + 17 * number) * width + number * shape.encoder_width
    tokens = keeping.blocks(shape.depth, block, width, (GIVEN + 1) * width) + 8 * width
    return shape.tokens * tokens + 4 * number * shape.stem * shape.sample_size**2
