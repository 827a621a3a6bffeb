"""Everything random is a function of (seed, purpose, step, block of the global batch).

A block is a fixed number of consecutive samples of the global batch, drawn from a generator of its own. So no rank,
worker, micro-batch or history changes a number, and resuming needs no generator state.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def key(*parts: int | str) -> int:
    """63 bits mixed from the parts."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little") >> 1


def generator(device: torch.device | str, *parts: int | str) -> torch.Generator:
    """A generator seeded by the parts alone."""
    return torch.Generator(device).manual_seed(key(*parts))


@dataclass(frozen=True)
class Draws:
    """Random numbers for the `count` samples that start at place `first` of the global batch of `step`."""

    seed: int
    step: int
    first: int
    count: int
    block: int
    device: torch.device
    dtype: torch.dtype = torch.float32
    """Of `normal`; the numbers are drawn in float32 and the same in any."""

    def __post_init__(self) -> None:
        if self.first % self.block or self.count % self.block:
            raise ValueError(f"samples {self.first}+{self.count} are no whole blocks of {self.block}")

    def generators(self, purpose: str) -> list[torch.Generator]:
        """One per block."""
        blocks = range(self.first // self.block, (self.first + self.count) // self.block)
        return [generator(self.device, self.seed, purpose, self.step, b) for b in blocks]

    def normal(self, purpose: str, shape: Sequence[int] = ()) -> Tensor:
        """Standard normal numbers (count, *shape)."""
        size = (self.block, *shape)
        draws = [torch.randn(size, generator=g, device=self.device) for g in self.generators(purpose)]
        return torch.cat(draws).to(self.dtype)

    def uniform(self, purpose: str, shape: Sequence[int] = ()) -> Tensor:
        """Uniform numbers in [0, 1), (count, *shape)."""
        size = (self.block, *shape)
        return torch.cat([torch.rand(size, generator=g, device=self.device) for g in self.generators(purpose)])

    def shared_integer(self, purpose: str, high: int) -> int:
        """One integer in [0, high), the same for every sample of every process."""
        g = generator("cpu", self.seed, purpose, self.step)
        return int(torch.randint(high, (), generator=g))
