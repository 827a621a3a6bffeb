"""Groups of equal and of nearly equal images, by the hashes that a preparation keeps."""

import numpy as np
from numpy.typing import NDArray

DISTANCE = 3  # bits of 64; with four bands of 16 bits, images this close agree in at least one band
BANDS = 4
MIN_BITS = 5  # fewer (or more than 64 less these) are images without structure, which all look alike
MAX_BUCKET = 4096
ONES = np.array([bin(value).count("1") for value in range(2**16)], dtype=np.uint8)

Groups = list[NDArray[np.int64]]


def equal_groups(sha256: NDArray[np.uint8]) -> Groups:
    """Groups of images (N, 32 hash bytes) with equal hashes, each sorted, by first member."""
    keys = np.ascontiguousarray(sha256).view(np.dtype((np.void, 32))).reshape(-1)
    _, inverse = np.unique(keys, return_inverse=True)
    return _groups(inverse.reshape(-1).astype(np.int64))


def similar_groups(looks: NDArray[np.uint64]) -> Groups:
    """Groups of images whose difference hashes (N,) differ in at most `DISTANCE` bits, directly or in steps."""
    bits = popcount(looks)
    structured = np.flatnonzero((bits >= MIN_BITS) & (bits <= 64 - MIN_BITS))
    values, inverse = np.unique(looks[structured], return_inverse=True)
    parent = np.arange(len(values))
    for band in range(BANDS):
        keys = (values >> np.uint64(16 * band)) & np.uint64(0xFFFF)
        order = np.argsort(keys, kind="stable")
        edges = np.flatnonzero(np.diff(keys[order])) + 1
        for bucket in np.split(order, edges):
            if 1 < len(bucket) <= MAX_BUCKET:
                _join_bucket(values, bucket, parent)
    for value in range(len(parent)):
        parent[value] = _root(parent, value)
    groups = _groups(parent[inverse.reshape(-1)])
    return [structured[group] for group in groups]


def popcount(values: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Number of set bits of each value."""
    return ONES[values.reshape(-1, 1).view(np.uint16)].sum(axis=1, dtype=np.int64)


def _join_bucket(values: NDArray[np.uint64], bucket: NDArray[np.int64], parent: NDArray[np.int64]) -> None:
    for place, member in enumerate(bucket[:-1]):
        others = bucket[place + 1 :]
        close = others[popcount(values[others] ^ values[member]) <= DISTANCE]
        for other in close:
            a, b = _root(parent, int(member)), _root(parent, int(other))
            parent[max(a, b)] = min(a, b)


def _root(parent: NDArray[np.int64], member: int) -> int:
    while parent[member] != member:
        parent[member] = parent[parent[member]]
        member = int(parent[member])
    return member


def _groups(keys: NDArray[np.int64]) -> Groups:
    """Positions that share a key, where at least two do."""
    order = np.argsort(keys, kind="stable")
    edges = np.flatnonzero(np.diff(keys[order])) + 1
    groups = [group for group in np.split(order, edges) if len(group) > 1]
    return sorted(groups, key=lambda group: int(group[0]))
