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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
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


def uniform(
    samples: Sequence[int], shape: Sequence[int], *parts: int | str, device: torch.device | str, fused: bool = False
) -> Tensor:
    """Uniform float32 numbers in [0, 1), multiples of 2^-24: (len(samples), *shape), those of a sample its own.

    Args:
        fused: compile what draws many numbers elsewhere than on a CPU into one kernel, the same for all.
    """
    return _numbers(uniform_of, samples, shape, parts, device, fused)


def normal(
    samples: Sequence[int], shape: Sequence[int], *parts: int | str, device: torch.device | str, fused: bool = False
) -> Tensor:
    """Standard normal float32 numbers (len(samples), *shape), those of a sample its own (Box and Muller 1958).

    Of the eight words of a block the first four make radii and the others angles. The largest magnitude is 5.77.
    `fused` as for `uniform`.
    """
    return _numbers(normal_of, samples, shape, parts, device, fused)


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
    fused: bool = False
    """See `uniform`."""

    def normal(self, purpose: str, shape: Sequence[int] = ()) -> Tensor:
        """Standard normal numbers (count, *shape)."""
        parts = self.seed, purpose, self.step
        return normal(self._places, shape, *parts, device=self.device, fused=self.fused).to(self.dtype)

    def uniform(self, purpose: str, shape: Sequence[int] = ()) -> Tensor:
        """Uniform numbers in [0, 1), (count, *shape)."""
        parts = self.seed, purpose, self.step
        return uniform(self._places, shape, *parts, device=self.device, fused=self.fused)

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


def _numbers(
    kind: Callable[[Tensor], Tensor],
    samples: Sequence[int],
    shape: Sequence[int],
    parts: Sequence[int | str],
    device: torch.device | str,
    fused: bool,
) -> Tensor:
    """(len(samples), *shape), made of the words of each sample."""
    size = math.prod(shape)
    found = [_blocks(kind, run, size, key(*parts, size), torch.device(device), fused) for run in _runs(samples)]
    return torch.cat(found).flatten(1)[:, :size].reshape(len(samples), *shape)


def _blocks(
    kind: Callable[[Tensor], Tensor], samples: range, size: int, secret: int, device: torch.device, fused: bool
) -> Tensor:
    """(N, B, 8): at least `size` numbers for each of N consecutive samples."""
    blocks = -(-size // BLOCK)
    start, count = samples.start * blocks, len(samples) * blocks
    if device.type != "cpu" and count * BLOCK > HOST_WORDS:
        make = one_kernel(kind) if fused else partial(drawn, kind)
        numbers = make(*philox_state(secret, start + 1, device), count)
    else:
        stream = np.random.Philox(key=secret, counter=start).random_raw(4 * count)  # it counts before it computes
        words = torch.from_numpy(stream.astype("<u8", copy=False).view(np.int32)).view(-1, BLOCK)
        if device.type == "cuda":  # from pinned memory the copy needs no synchronisation
            words = words.pin_memory()
        numbers = kind(words.to(device, non_blocking=True))
    return numbers.view(len(samples), blocks, BLOCK)


def uniform_of(words: Tensor) -> Tensor:
    """Uniform numbers (n, 8) of int32 words (n, 8)."""
    return (words >> 8 & 0xFFFFFF).mul(2.0**-24)


def normal_of(words: Tensor) -> Tensor:
    """Standard normal numbers (n, 8) of int32 words (n, 8)."""
    radius, angle = (words >> 8 & 0xFFFFFF).chunk(2, dim=1)
    radius = (radius + 1).mul(2.0**-24).log().mul(-2).sqrt()  # of numbers in (0, 1]
    angle = angle.mul(2 * math.pi * 2.0**-24)
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)


def drawn(kind: Callable[[Tensor], Tensor], secret: Tensor, first: Tensor, count: int) -> Tensor:
    """Numbers (count, 8) of `count` blocks from `first` on."""
    return kind(philox(secret, first, count))


@cache
def one_kernel(kind: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor, int], Tensor]:
    """`drawn`, compiled once: key and counters are numbers on the device, and any count will do."""
    return torch.compile(partial(drawn, kind), dynamic=True)


def philox_state(secret: int, first: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """A 128-bit key, int64 (2,), and the number of a block, int64 (), filled on the device: a copy from the host would
    wait for it."""
    low, high, start = (torch.full((), signed(n), device=device) for n in (secret, secret >> 64, first))
    return torch.stack([low, high]), start


def philox(secret: Tensor, first: Tensor, count: int) -> Tensor:
    """Blocks `first` to `first + count - 1` of Philox4x64-10, see `philox_state`: int32 (count, 8), low words first.

    Integer operations of torch wrap at 64 bits, and shifts copy the sign: hence the masks.
    """
    a = torch.arange(count, device=secret.device) + first
    b = c = d = torch.zeros_like(a)
    for r in range(10):
        key_b, key_d = secret[0] + signed(r * WEYL[0]), secret[1] + signed(r * WEYL[1])
        (high_a, low_a), (high_c, low_c) = product(a, MULTIPLIERS[0]), product(c, MULTIPLIERS[1])
        a, b, c, d = high_c ^ b ^ key_b, low_c, high_a ^ d ^ key_d, low_a
    return torch.stack([half for lane in (a, b, c, d) for half in (lane, lane >> 32)], dim=1).to(torch.int32)


def product(a: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """The upper and the lower 64 bits of unsigned products with a 64-bit number, the upper ones from 32-bit halves."""
    a_low, a_high, f_low, f_high = a & LOW, a >> 32 & LOW, factor & LOW, factor >> 32
    carry = a_high * f_low + (a_low * f_low >> 32 & LOW)
    middle = a_low * f_high + (carry & LOW)
    return a_high * f_high + (carry >> 32 & LOW) + (middle >> 32 & LOW), a * signed(factor)


def signed(value: int) -> int:
    """The lowest 64 bits as torch's int64 has them."""
    value &= 2**64 - 1
    return value - 2**64 if value >= 2**63 else value
