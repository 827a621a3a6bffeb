"""The order in which an endless stream visits the data: a pure function of (seed, position)."""

import numpy as np
from numpy.typing import NDArray

from epg.errors import DataError

BLOCK, WINDOW = 128, 16
Words = NDArray[np.uint64]

ROUNDS = 12  # with 6, the permutations of ten samples are visibly not uniform
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix64(x: Words) -> Words:
    """Scramble 64-bit words bijectively (the finaliser of splitmix64); returns a new array."""
    x = x ^ (x >> np.uint64(30))
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


class EpochOrder:
    """A fresh permutation of `length` samples in every epoch, evaluated anywhere in O(1) time and memory.

    A Feistel network keyed by (seed, epoch) permutes the smallest power of four that holds `length`; cycle walking
    (apply it again until the result is < length) restricts that permutation to the samples.
    """

    def __init__(self, length: int, seed: int) -> None:
        if not 1 <= length <= 2**62:
            raise DataError(f"a data set must have between 1 and 2^62 images, this one has {length}")
        self.length = length
        self.seed = seed
        self.half_bits = max(1, ((length - 1).bit_length() + 1) // 2)

    def indices(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Dataset indices (same shape, int64) at `positions` >= 0 of the endless stream."""
        flat = np.asarray(positions, dtype=np.int64).reshape(-1)
        if flat.size == 0:
            return np.empty(np.shape(positions), np.int64)
        assert flat.min() >= 0, "stream positions start at 0"
        epochs, offsets = np.divmod(flat, np.int64(self.length))
        if epochs[0] == epochs.max() == epochs.min():
            epochs = epochs[:1]  # one set of round keys serves all positions
        keys = self._round_keys(epochs.astype(np.uint64))
        values = self._permute(offsets.astype(np.uint64), keys)
        outside = np.flatnonzero(values >= self.length)
        while outside.size:
            values[outside] = self._permute(values[outside], keys if keys.shape[1] == 1 else keys[:, outside])
            outside = outside[values[outside] >= self.length]
        return values.astype(np.int64).reshape(np.shape(positions))

    def _round_keys(self, epochs: Words) -> Words:
        """(ROUNDS, E) keys for E epochs."""
        seed = mix64(np.array([self.seed % 2**64], np.uint64) + GOLDEN)
        rounds = np.arange(1, ROUNDS + 1, dtype=np.uint64)[:, None]
        return mix64(mix64(seed + GOLDEN * (epochs + np.uint64(1))) + GOLDEN * rounds)

    def _permute(self, values: Words, keys: Words) -> Words:
        """One pass of the Feistel network over [0, 4^half_bits)."""
        half = np.uint64(self.half_bits)
        mask = np.uint64(2**self.half_bits - 1)
        left, right = values >> half, values & mask
        for key in keys:
            left, right = right, left ^ (mix64(right ^ key) & mask)
        return (left << half) | right


class BalancedOrder:
    """An endless stream in which every class comes equally often, evaluated anywhere like `EpochOrder`.

    Every C consecutive positions hold each of the C classes once, in an order keyed by (seed, block); the visits of a
    class run through keyed permutations of its images, so that small classes are repeated evenly.
    """

    def __init__(self, labels: NDArray[np.int64], seed: int) -> None:
        self.length = len(labels)
        self.by_class = np.argsort(labels, kind="stable")
        _, starts, counts = np.unique(labels[self.by_class], return_index=True, return_counts=True)
        self.starts = starts
        self.classes = EpochOrder(len(starts), seed)
        first = np.uint64(int(GOLDEN) * (seed + 1) % 2**64)
        keys = mix64(np.arange(len(starts), dtype=np.uint64) + first)
        self.members = [EpochOrder(int(n), int(key)) for n, key in zip(counts, keys, strict=True)]

    def indices(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Dataset indices (same shape, int64) at `positions` >= 0 of the endless stream."""
        flat = np.asarray(positions, dtype=np.int64).reshape(-1)
        classes, visits = self.classes.indices(flat), flat // len(self.members)
        result = np.empty_like(flat)
        for number in np.unique(classes):
            here = classes == number
            result[here] = self.by_class[self.starts[number] + self.members[number].indices(visits[here])]
        return result.reshape(np.shape(positions))


class BlockOrder:
    """An endless stream that visits every sample once per epoch, reading runs of neighbours: images may be far away.

    The samples are cut into blocks of `block`; blocks are permuted by (seed, epoch), and samples are permuted within
    every `window` blocks that follow each other. That is the shuffling of a buffer of `window * block` samples, but a
    pure function of the position: it resumes exactly and needs no memory. A last, shorter block always comes last.
    """

    def __init__(self, length: int, seed: int, block: int = BLOCK, window: int = WINDOW) -> None:
        if length < 1:
            raise DataError("a data set must have at least one image")
        self.length, self.seed, self.block, self.window = length, seed, block, window
        self.full = length // block
        self.blocks = EpochOrder(max(1, self.full), seed)

    def indices(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Dataset indices (same shape, int64) at `positions` >= 0 of the endless stream."""
        flat = np.asarray(positions, dtype=np.int64).reshape(-1)
        epochs, offsets = np.divmod(flat, np.int64(self.length))
        last_group = max(0, (self.full - 1) // self.window)  # it has the short block too
        groups = np.minimum(offsets // (self.block * self.window), last_group)
        result = np.empty_like(flat)
        for epoch, group in {(int(e), int(g)) for e, g in zip(epochs, groups, strict=True)}:
            here = (epochs == epoch) & (groups == group)
            start = group * self.block * self.window
            size = (self.length if group == last_group else start + self.block * self.window) - start
            local = EpochOrder(size, self._key(epoch, group)).indices(offsets[here] - start)
            place = start + local
            moved = place < self.full * self.block
            place[moved] = self._move(epoch, place[moved])
            result[here] = place
        return result.reshape(np.shape(positions))

    def _move(self, epoch: int, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """The samples at `places` once blocks are permuted."""
        blocks, inner = np.divmod(places, np.int64(self.block))
        return self.blocks.indices(epoch * self.full + blocks) * self.block + inner

    def _key(self, epoch: int, group: int) -> int:
        words = [int(GOLDEN) * (value + 1) % 2**64 for value in (self.seed, epoch, group)]
        key = np.zeros(1, np.uint64)
        for word in words:
            key = mix64(key ^ np.uint64(word))
        return int(key[0])
