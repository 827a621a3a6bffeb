"""Tensors of which every process holds a part, as FSDP makes them; of any other tensor all this is the identity."""

import sys
from typing import TYPE_CHECKING, TypeGuard

from torch import Tensor

from epg.distributed import rank

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_sharded(x: Tensor) -> "TypeGuard[DTensor]":
    """Whether this process holds a shard of a tensor. The module takes a second to import, and until somebody has
    imported it there is no such tensor."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(x, module.DTensor)


def local(x: Tensor) -> Tensor:
    """This process's shard of a sharded tensor (sharing its memory); any other tensor itself."""
    return x.to_local() if is_sharded(x) else x


def full(x: Tensor) -> Tensor:
    """The whole of a sharded tensor, gathered from every process (all must call it); any other tensor itself."""
    return x.full_tensor() if is_sharded(x) else x


def whole_on_first(x: Tensor) -> Tensor:
    """The whole of a sharded tensor on the CPU of rank 0 and nothing, (0,), elsewhere: no GPU holds more than one at a
    time (all must call it); any other tensor itself."""
    if not is_sharded(x):
        return x
    whole = x.full_tensor()
    return whole.cpu() if rank() == 0 else whole.new_empty(0)


def shard_like(x: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, the same on every process, sharded as `like` is."""
    x = x.to(like.device)
    if not is_sharded(like):
        return x
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(x, like.device_mesh, like.placements)
