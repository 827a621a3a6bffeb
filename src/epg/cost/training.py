"""What training costs: FLOPs, and the hours that they take."""

from epg.config.settings import RunConfig
from epg.cost.network import alignment_cost, encoder_cost, generator_cost, projector_cost
from epg.cost.shape import shape_of


def training_flops(config: RunConfig) -> float:
    """FLOPs that training spends on one image in one step: two for each multiply-add of linear layers, convolutions and
    the attention's products, see `ObjectiveConfig.work`. Elementwise work, the losses and what activation
    checkpointing computes again do not count."""
    spent, shape = config.objective.work.spent, shape_of(config.model, config.data, internal=config.internal)
    costs = (encoder_cost(shape), projector_cost(config.model), generator_cost(shape))
    if config.optimizer.frozen_encoder:  # of three parts of a trained pass it has the forward one
        spent = spent._replace(encoder=spent.encoder - 2)
    macs = sum(times * cost.macs_with_attention for times, cost in zip(spent, costs, strict=True))
    return 2 * (macs + 3 * config.objective.aligned * alignment_cost(shape).macs)


def hours(config: RunConfig, peak: float, mfu: float, devices: int = 1) -> float:
    """Of all steps of a run.

    Args:
        peak: FLOP/s of a device, see `epg.cost.devices`.
        mfu: the share of it that training reaches.
    """
    flops = training_flops(config) * config.training.batch_size * config.training.steps
    return flops / (peak * mfu * devices) / 3600
