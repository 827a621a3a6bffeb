"""Exponential moving averages of a network's weights, several decays at once."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from epg.networks.layers import full_precision


class EMA:
    """Shadows of a network's parameters in at least float32, one set per decay.

    After a step, `e <- decay e + (1 - decay) w`.
    """

    def __init__(self, network: nn.Module, decays: list[float]) -> None:
        self.network = network
        self.shadows = {
            decay: {name: full_precision(p.detach().clone()) for name, p in network.named_parameters()}
            for decay in decays
        }

    @torch.no_grad()
    def update(self) -> None:
        parameters = [full_precision(p.detach()) for p in self.network.parameters()]
        for decay, shadow in self.shadows.items():
            torch._foreach_lerp_(list(shadow.values()), parameters, 1 - decay)

    def state_dict(self, decay: float) -> dict[str, Tensor]:
        """A complete state dict of the network: averaged parameters, and its buffers as they are."""
        return {**self.network.state_dict(), **self.shadows[decay]}

    def load(self, decay: float, tensors: dict[str, Tensor]) -> None:
        """Restores one set of shadows in place."""
        for name, shadow in self.shadows[decay].items():
            shadow.copy_(tensors[name])

    @contextmanager
    def applied(self, decay: float) -> Iterator[None]:
        """The network has the averaged weights inside the `with`, its own again afterwards."""
        own = {name: p.detach().clone() for name, p in self.network.named_parameters()}
        self._write(self.shadows[decay])
        try:
            yield
        finally:
            self._write(own)

    @torch.no_grad()
    def _write(self, values: dict[str, Tensor]) -> None:
        for name, p in self.network.named_parameters():
            p.copy_(values[name])
