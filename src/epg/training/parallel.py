"""One process or many: how the objective is wrapped, compiled and recomputed."""

import contextlib
import inspect
import warnings
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
    noop_context_fn,
)

from epg.config.settings import RunConfig
from epg.distributed import world_size
from epg.errors import UserError
from epg.networks import EPG, Encoder
from epg.networks.layers import transformer_blocks
from epg.networks.precision import PRECISIONS
from epg.objectives.base import Objective

SYNC = "forward_sync_buffers"  # of buffers, before every pass; newer versions of torch warn of the older name
SYNC = SYNC if SYNC in inspect.signature(DistributedDataParallel).parameters else "broadcast_buffers"


def wrap(objective: Objective, config: RunConfig) -> nn.Module:
    """The module to call: the objective itself in one process, in DDP or sharded (FSDP2) in several."""
    training = config.training
    for block in transformer_blocks(objective):
        if training.activation_checkpointing:
            recompute(block, training.keep_products)
        if training.compile and not training.cuda_graphs:
            block.compile()
    if training.cuda_graphs:
        for network in whole_networks(objective):
            network.compile(mode="reduce-overhead", dynamic=False)
    if world_size() == 1:
        return objective
    if training.parallel == "ddp":
        # Of the patch embedding, whose gradient has its channels last: a few kilobytes are copied.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        options: dict[str, Any] = {SYNC: False, "gradient_as_bucket_view": True}
        return DistributedDataParallel(objective, **options)
    return sharded(objective, PRECISIONS.get(training.precision))


def sharded(objective: Objective, half: torch.dtype | None = None) -> nn.Module:
    """Its weights cut over the processes (FSDP2), to be gathered block by block.

    With `half`, the precision of autocast, those of blocks are gathered in it, half as many bytes: their products would
    round them to it anyway. Gradients are summed in float32.
    """
    from torch.distributed.fsdp import (  # a second to import
        MixedPrecisionPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )

    # The residual stream comes in float32, and stays so.
    gathered = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=half and torch.float32, cast_forward_inputs=False)
    for block in transformer_blocks(objective):
        fully_shard(block, mp_policy=gathered)
    if isinstance(objective.network, EPG):
        fully_shard(objective.network)  # so that it can be called alone, to sample
    # After diagnostics no backward pass would shard the outermost weights again.
    fully_shard(objective, reshard_after_forward=True)
    register_fsdp_forward_method(objective, "diagnostics")
    return objective


def whole_networks(module: nn.Module) -> list[nn.Module]:
    """The generators and the encoders outside of them: the largest unit of compiling."""
    if isinstance(module, EPG | Encoder):
        return [module]
    return [network for child in module.children() for network in whole_networks(child)]


def recompute(block: nn.Module, keep_products: bool) -> None:
    """Activation checkpointing: the backward pass runs the block again instead of keeping what is inside it: all of it,
    or only what is cheap to compute."""
    forward = block.forward
    contexts = partial(create_selective_checkpoint_contexts, kept) if keep_products else noop_context_fn

    def checkpointed(*inputs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*inputs)
        return checkpoint(forward, *inputs, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)

    block.forward = checkpointed


def kept(context: Any, operation: Any, *inputs: Any, **options: Any) -> CheckpointPolicy:
    """Whether what an operation gives is kept: what is as dear as a product of matrices."""
    dear = any(part in operation.name() for part in ("mm", "attention"))  # mm, addmm, bmm, baddbmm
    return CheckpointPolicy.MUST_SAVE if dear else CheckpointPolicy.PREFER_RECOMPUTE


@contextlib.contextmanager
def gradient_sync(module: nn.Module, enabled: bool) -> Any:
    """Leaves the exchange of gradients out of every micro-batch but the last."""
    if isinstance(module, DistributedDataParallel):
        with contextlib.nullcontext() if enabled else module.no_sync():
            yield
    else:
        if world_size() > 1:
            module.set_requires_gradient_sync(enabled)  # type: ignore[operator]  # of FSDPModule
        yield


def refuse_uneven_processes(config: RunConfig, processes: int) -> None:
    """Every process must get the same number of images, or the mean of their losses is not that of the batch."""
    if config.training.batch_size % processes:
        raise UserError(
            f"--training.batch-size {config.training.batch_size}: not a multiple of the {processes} processes. "
            "Choose another batch size or number of processes."
        )
