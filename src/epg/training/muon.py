"""Muon (Jordan et al. 2024) with the matrices of one shape orthogonalised together."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Muon(torch.optim.Muon):
    """torch's Muon, its settings and its state, in a few large operations.

    torch treats matrix after matrix: some 25 small operations for each, and in a network of 60 matrices a GPU waits for
    all of them to be queued, in every step.
    """

    found_inf: Tensor | None = None
    """0, or 1 where the step shall change nothing, in a number on the device; as torch's fused AdamW has it."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        assert closure is None
        fine = None if self.found_inf is None else self.found_inf == 0
        if fine is not None and fine.device.type == "cpu":  # where reading it costs nothing, and computing does
            if not fine:
                return
            fine = None
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(parameter.shape, []).append(parameter)
            for alike in by_shape.values():
                self._update(alike, group, fine)

    def _update(self, parameters: list[Tensor], group: dict[str, Any], fine: Tensor | None) -> None:
        """One update of parameters of the same shape; none where `fine`, on the device, is False."""
        lr, momentum = group["lr"], group["momentum"]
        gradients = torch.stack([p.grad for p in parameters if p.grad is not None])  # (N, A, B)
        buffers = [self.state[p].setdefault("momentum_buffer", torch.zeros_like(p)) for p in parameters]
        before = torch.stack(buffers)
        after = before.lerp(gradients, 1 - momentum)
        ahead = gradients.lerp(after, momentum) if group["nesterov"] else after
        moves = orthogonal(ahead, group["ns_coefficients"], group["ns_steps"], group["eps"]).to(before.dtype)
        shrunk = torch.full((), 1 - lr * group["weight_decay"], dtype=before.dtype, device=before.device)
        if fine is not None:
            after, moves, shrunk = after.where(fine, before), moves.where(fine, 0), shrunk.where(fine, 1)
        torch._foreach_copy_(buffers, after.unbind())
        torch._foreach_mul_(parameters, shrunk)
        rows, columns = parameters[0].shape
        torch._foreach_add_(parameters, moves.unbind(), alpha=-lr * math.sqrt(max(1, rows / columns)))


def orthogonal(matrices: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Matrices (N, A, B) with singular values near 1, in bfloat16: the Newton-Schulz iteration of Muon."""
    a, b, c = coefficients
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).bfloat16()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
