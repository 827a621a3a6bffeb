"""Everything random is a function of (seed, purpose, step, sample): counter-based numbers, the same on every device.

The generator is Philox4x64-10 (Salmon et al. 2011). Its 128-bit key is a hash of what the numbers are for, its counter
says whose they are: with B blocks of eight 32-bit words a sample, sample i has the blocks i B + 1 to (i + 1) B. So no
rank, worker, micro-batch or history changes a number, two samples never share one, and resuming needs no state. On a
CPU numpy computes the blocks; elsewhere integer operations of torch give the same words.

Words become numbers by steps that are exact in float32, but for the logarithm, sine and cosine of a normal number:
uniform numbers agree bit for bit between devices, normal ones to rounding.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BLOCK = 8  # 32-bit words that Philox makes of one counter
LARGEST = 2**40  # samples of one key: their blocks stay far below 2^63
HOST_WORDS = 2**18  # up to here numpy is done before another device's hundreds of small operations are queued
MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
LOW = 0xFFFFFFFF


def key(*parts: int | str) -> int:
    """128 bits mixed from the parts."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=16).digest(), "little")


def weights_seed(*parts: int | str) -> int:
    """A seed for torch's own generator, which initialises weights, once a network."""
    return key(*parts) >> 65


def uniform(samples: Sequence[int], shape: Sequence[int], *parts: int | str, device: torch.device | str) -> Tensor:
    """Uniform float32 numbers in [0, 1), multiples of 2^-24: (len(samples), *shape), those of a sample its own."""
    size = math.prod(shape)
    words = torch.cat([_words(run, size, parts, device).flatten(1) for run in _runs(samples)])
    return (words[:, :size] >> 8 & 0xFFFFFF).mul(2.0**-24).view(len(samples), *shape)


def normal(samples: Sequence[int], shape: Sequence[int], *parts: int | str, device: torch.device | str) -> Tensor:
    """Standard normal float32 numbers (len(samples), *shape), those of a sample its own (Box and Muller 1958).

    Of the eight words of a block the first four make radii and the others angles. The largest magnitude is 5.77.
    """
    size = math.prod(shape)
    words = torch.cat([_words(run, size, parts, device) for run in _runs(samples)])  # (N, B, 8)
    radius, angle = (words >> 8 & 0xFFFFFF).unflatten(2, (2, 4)).unbind(2)
    radius = (radius + 1).mul(2.0**-24).log_().mul_(-2).sqrt_()  # of numbers in (0, 1]
    angle = angle.mul(2 * math.pi * 2.0**-24)
    numbers = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=2)
    return numbers.flatten(1)[:, :size].reshape(len(samples), *shape)


def doubles(count: int, *parts: int | str) -> NDArray[np.float64]:
    """Uniform float64 numbers in [0, 1), multiples of 2^-53, on the host; number i does not depend on `count`."""
    return np.multiply(_stream(count, parts) >> np.uint64(11), 2.0**-53, dtype=np.float64)


def integers(high: int, count: int, *parts: int | str) -> NDArray[np.int64]:
    """Integers in [0, high) on the host, for `high` far below 2^53."""
    return (doubles(count, *parts) * high).astype(np.int64)


def permutation(count: int, *parts: int | str) -> NDArray[np.int64]:
    """The numbers 0 to count - 1 in an order of chance, on the host."""
    return np.argsort(_stream(count, parts), kind="stable")


@dataclass(frozen=True)
class Draws:
    """Random numbers for the `count` samples that start at place `first` of the global batch of `step`."""

    seed: int
    step: int
    first: int
    count: int
    device: torch.device
    dtype: torch.dtype = torch.float32
    """Of `normal`; the numbers are drawn in float32 and the same in any."""

    def normal(self, purpose: str, shape: Sequence[int] = ()) -> Tensor:
        """Standard normal numbers (count, *shape)."""
        return normal(self._places, shape, self.seed, purpose, self.step, device=self.device).to(self.dtype)

    def uniform(self, purpose: str, shape: Sequence[int] = ()) -> Tensor:
        """Uniform numbers in [0, 1), (count, *shape)."""
        return uniform(self._places, shape, self.seed, purpose, self.step, device=self.device)

    def shared_integer(self, purpose: str, high: int) -> int:
        """One integer in [0, high), the same for every sample of every process."""
        return int(integers(high, 1, self.seed, purpose, self.step)[0])

    @property
    def _places(self) -> range:
        return range(self.first, self.first + self.count)


# Philox -------------------------------------------------------------------------------------------------------------


def _stream(count: int, parts: Sequence[int | str]) -> NDArray[np.uint64]:
    return np.random.Philox(key=key(*parts)).random_raw(count)


def _runs(samples: Sequence[int]) -> Iterator[range]:
    """The samples as ranges of consecutive ones."""
    if isinstance(samples, range) and samples.step == 1 and samples:
        runs = [samples]
    else:
        groups = groupby(enumerate(samples), lambda pair: pair[1] - pair[0])
        runs = [range(found[0][1], found[-1][1] + 1) for _, pairs in groups if (found := list(pairs))]
    for run in runs:
        if run.start < 0 or run.stop > LARGEST:
            raise ValueError(f"sample {run.start if run.start < 0 else run.stop - 1}: must be between 0 and 2^40 - 1")
        yield run


def _words(samples: range, size: int, parts: Sequence[int | str], device: torch.device | str) -> Tensor:
    """int32 (N, B, 8): at least `size` words for each of N consecutive samples."""
    blocks = -(-size // BLOCK)
    start, count, secret = samples.start * blocks, len(samples) * blocks, key(*parts, size)
    device = torch.device(device)
    if device.type != "cpu" and count * BLOCK > HOST_WORDS:
        words = philox(secret, start + 1, count, device)
    else:
        stream = np.random.Philox(key=secret, counter=start).random_raw(4 * count)  # it counts before it computes
        words = torch.from_numpy(stream.astype("<u8", copy=False).view(np.int32))
        if device.type == "cuda":  # from pinned memory the copy needs no synchronisation
            words = words.pin_memory()
        words = words.to(device, non_blocking=True)
    return words.view(len(samples), blocks, BLOCK)


def philox(secret: int, first: int, count: int, device: torch.device | str) -> Tensor:
    """Blocks `first` to `first + count - 1` of Philox4x64-10 under a 128-bit key: int32 (count, 8), low words first.

    Two of the four 64-bit lanes are multiplied and the others mixed in, so each pair is one tensor (2, count). Integer
    operations of torch wrap at 64 bits, and shifts copy the sign: hence the masks.
    """
    multiplied = torch.zeros(2, count, dtype=torch.int64, device=device)
    multiplied[0] = torch.arange(first, first + count, device=device)
    mixed = torch.zeros_like(multiplied)
    factors = _column(MULTIPLIERS, device)
    for r in range(10):
        round_key = _column([(secret >> 64 * i) + r * w & 2**64 - 1 for i, w in enumerate(WEYL)], device)
        high, low = _high(multiplied, factors).flip(0), (multiplied * factors).flip(0)
        multiplied, mixed = high ^ mixed ^ round_key, low
    lanes = torch.stack([multiplied[0], mixed[0], multiplied[1], mixed[1]], dim=1)  # (count, 4)
    return torch.stack([lanes, lanes >> 32], dim=2).to(torch.int32).flatten(1)


def _column(values: Sequence[int], device: torch.device | str) -> Tensor:
    """Unsigned 64-bit numbers as int64 (2, 1), filled on the device: a copy from the host would wait for it."""
    signed = [value - 2**64 if value >= 2**63 else value for value in values]
    return torch.cat([torch.full((1, 1), value, dtype=torch.int64, device=device) for value in signed])


def _high(a: Tensor, b: Tensor) -> Tensor:
    """The upper 64 bits of unsigned 64-bit products, from 32-bit halves."""
    a_low, a_high, b_low, b_high = a & LOW, a >> 32 & LOW, b & LOW, b >> 32 & LOW
    carry = a_high * b_low + (a_low * b_low >> 32 & LOW)
    middle = a_low * b_high + (carry & LOW)
    return a_high * b_high + (carry >> 32 & LOW) + (middle >> 32 & LOW)
