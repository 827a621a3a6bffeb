"""Groups of equal and of nearly equal images, by the hashes that a preparation keeps."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

DISTANCE = 3  # bits of 64; with four bands of 16 bits, images this close agree in at least one band
BANDS = 4
MIN_BITS = 5  # fewer (or more than 64 less these) are images without structure, which all look alike
MAX_BUCKET = 4096

Groups = list[NDArray[np.int64]]


def equal_groups(sha256: NDArray[np.uint8]) -> Groups:
    """Groups of images (N, 32 hash bytes) with equal hashes, each sorted, by first member."""
    keys = np.ascontiguousarray(sha256).view(np.dtype((np.void, 32))).reshape(-1)
    _, inverse = np.unique(keys, return_inverse=True)
    return _groups(inverse.reshape(-1))


def similar_groups(looks: NDArray[np.uint64]) -> Groups:
    """Groups of images whose difference hashes (N,) differ in at most `DISTANCE` bits, directly or in steps."""
    bits = popcount(looks)
    structured = np.flatnonzero((bits >= MIN_BITS) & (bits <= 64 - MIN_BITS))
    values, inverse = np.unique(looks[structured], return_inverse=True)
    pairs = [np.empty((0, 2), np.int64)]
    for band in range(BANDS):
        for bucket in _groups((values >> np.uint64(16 * band)) & np.uint64(0xFFFF)):
            if len(bucket) <= MAX_BUCKET:
                pairs.append(np.stack([bucket, bucket[_linked(values[bucket])]], axis=1))
    from scipy.sparse import coo_array  # as slow to import as all else that reads images
    from scipy.sparse.csgraph import connected_components

    ends = np.concatenate(pairs).T
    graph = coo_array((np.ones(ends.shape[1]), tuple(ends)), shape=(len(values), len(values)))
    _, component = connected_components(graph, directed=False)
    return [structured[group] for group in _groups(component[inverse.reshape(-1)])]


def _linked(values: NDArray[np.uint64]) -> NDArray[np.int64]:
    """For each of a few hashes the place of one that stands for its group."""
    group = np.arange(len(values))
    for place in range(len(values) - 1):
        close = place + 1 + np.flatnonzero(popcount(values[place + 1 :] ^ values[place]) <= DISTANCE)
        if len(close):
            group[np.isin(group, group[close])] = group[place]
    return group


def popcount(values: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Number of set bits of each value."""
    octets = np.ascontiguousarray(values).view(np.uint8).reshape(-1, 8)
    return np.unpackbits(octets, axis=1).sum(axis=1, dtype=np.int64)


def _groups(keys: NDArray[Any]) -> Groups:
    """Positions that share a key, where at least two do."""
    order = np.argsort(keys, kind="stable")
    edges = np.flatnonzero(np.diff(keys[order])) + 1
    groups = [group for group in np.split(order, edges) if len(group) > 1]
    return sorted(groups, key=lambda group: int(group[0]))
