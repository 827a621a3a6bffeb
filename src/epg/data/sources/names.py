"""Names by the million: what listing an archive of ImageNet's size takes in memory, and a loader's process keeps."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

PART = 2**16  # names at a time
T = TypeVar("T", bound=np.generic)


def pick(values: NDArray[T], chosen: NDArray[np.int64]) -> NDArray[T]:
    """`values[chosen]`; the same array where that is all of it, since copies of millions cost memory."""
    everything = len(chosen) == len(values) and bool((chosen == np.arange(len(values))).all())
    return values if everything else values[chosen]


class Names(Sequence[bytes]):
    """Many byte strings as pieces of one: a list of objects would cost ten times the memory, in every process."""

    def __init__(self, blob: bytes, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> None:
        self.blob, self.starts, self.ends = blob, starts, ends

    @classmethod
    def of(cls, names: Sequence[bytes]) -> "Names":
        lengths = np.fromiter(map(len, names), np.int64, len(names))
        ends = np.cumsum(lengths, dtype=np.int64)
        return cls(b"".join(names), ends - lengths, ends)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        return self.blob[int(self.starts[index]) : int(self.ends[index])]

    def __iter__(self) -> Iterator[bytes]:
        for part in self.parts():
            yield from part

    def parts(self) -> Iterator[list[bytes]]:
        """All names in order, some at a time."""
        for first in range(0, len(self), PART):
            ends = self.ends[first : first + PART].tolist()
            starts = self.starts[first : first + PART].tolist()
            yield [self.blob[start:end] for start, end in zip(starts, ends, strict=True)]

    def take(self, chosen: NDArray[np.int64]) -> "Names":
        return Names(self.blob, pick(self.starts, chosen), pick(self.ends, chosen))

    def without(self, prefix: bytes) -> "Names":
        """Names that all begin with a prefix, without it."""
        return Names(self.blob, self.starts + len(prefix), self.ends)

    def folders(self) -> tuple[list[bytes], NDArray[np.int64]]:
        """The folders that files lie in (empty for the top), and which of them each name (N,) lies in."""
        numbers: dict[bytes, int] = {}
        found = (numbers.setdefault(name.rpartition(b"/")[0], len(numbers)) for name in self)
        which = np.fromiter(found, np.int64, len(self))
        return list(numbers), which
