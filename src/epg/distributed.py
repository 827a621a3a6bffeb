"""Several processes as one: a few collectives that are the identity in a single process."""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def world_size() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process among them, 0 first."""
    return dist.get_rank() if dist.is_initialized() else 0


class _AllReduceSum(torch.autograd.Function):
    """Sum over processes; the gradient of a sum that every process uses is the sum of their gradients."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
        pass

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        grad = grad.clone()
        dist.all_reduce(grad)
        return grad


def all_reduce_sum(x: Tensor) -> Tensor:
    """Differentiable sum over processes."""
    return _AllReduceSum.apply(x) if world_size() > 1 else x


@torch.no_grad()
def all_gather(x: Tensor) -> Tensor:
    """Rows of every process, in the order of their ranks: (N, ...) -> (world_size * N, ...). Carries no gradient."""
    if world_size() == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(world_size())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)


def local(x: Tensor) -> Tensor:
    """This process's shard of a sharded tensor (sharing its memory); any other tensor itself."""
    return x.to_local() if isinstance(x, DTensor) else x


def full(x: Tensor) -> Tensor:
    """The whole of a sharded tensor, gathered from every process (all must call it); any other tensor itself."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def shard_like(x: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, the same on every process, sharded as `like` is."""
    x = x.to(like.device)
    return distribute_tensor(x, like.device_mesh, like.placements) if isinstance(like, DTensor) else x
