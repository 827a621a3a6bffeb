"""Does a generator repeat its training images? Its samples against training images and against held-out ones.

Being near to training images proves nothing: samples that are typical of the data, as guidance makes them, are near to
all real images. The question is whether they are nearer to the training images than to equally real ones that the
generator has never seen. Two answers:

- `score`: how often the nearest of all real images is a training image, beyond what chance gives. 0 for a generator
  that cannot tell the two sets apart, 1 for one that only copies. Its error is exact (a permutation of the labels
  "training" and "held-out" among the real images), however many samples share one neighbour.
- `copies`: the share of samples at less than a third of the distance to their nearest training image than to the second
  nearest (Yoon et al. 2023, "Diffusion Probabilistic Models Generalize when They Fail to Memorize").
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from epg.evaluation.nearest import nearest

COPY_RATIO = 1 / 3
SIGNIFICANT = 3.0  # standard errors
NOTICEABLE = 0.01  # share of outright copies beyond that of real images

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Memorisation:
    """What the distances in one space say. Distances are in its units."""

    space: str
    samples: int
    train: int
    held_out: int
    score: float
    """(share - expected) / (1 - expected): 0 for chance, 1 where every sample is nearest to a training image."""
    error: float
    """Standard deviation of the score if the generator knew nothing of which images it was trained on."""
    share: float
    """Share of samples whose nearest real image is a training image."""
    expected: float
    """What chance gives: the share of training images among the real ones."""
    copies: float
    """Share of samples whose nearest training image is less than a third as far as the second nearest."""
    copies_held_out: float
    """The same share of held-out images: what chance gives."""
    distance: float
    """Median distance from a sample to its nearest training image."""
    distance_held_out: float
    """The same from a held-out image."""
    control: float
    """The score of the held-out images themselves, each left out of them in turn: 0 in a space that is fair."""
    control_error: float
    """Its standard deviation in a fair space, roughly."""

    @property
    def fair(self) -> bool:
        """Whether the space treats both sets alike. Features that were fitted to the training images do not."""
        return abs(self.control) <= SIGNIFICANT * self.control_error

    @property
    def significant(self) -> bool:
        """Whether the score is more than three standard errors above chance."""
        return self.score > SIGNIFICANT * self.error

    @property
    def verdict(self) -> str:
        """One sentence for people."""
        if not self.fair:
            return f"nothing can be said: this space tells training from held-out images (control {self.control:.2f})"
        if self.significant:
            if self.copies > self.copies_held_out + NOTICEABLE:
                return f"copies training images: {self.copies:.0%} of samples outright"
            return "drawn to training images: nearer to them than chance allows, but hardly any sample is a copy"
        if self.score < -SIGNIFICANT * self.error:
            return "nearer to the held-out images: are they what the model was trained on, or duplicates of it?"
        return "no sign of memorisation"


@dataclass(frozen=True)
class Distances:
    """From queries (N, D) to real images: distance and index of the nearest training images (N, k) and held-out one."""

    train: Array
    train_index: NDArray[np.int64]
    held_out: Array  # (N,)
    held_out_index: NDArray[np.int64]

    @property
    def nearer_to_train(self) -> Array:
        """1 where a training image is nearest, 0 where a held-out one is, a half where both are equally near: (N,)."""
        first = self.train[:, 0]
        return np.where(first == self.held_out, 0.5, first < self.held_out).astype(np.float64)


def distances(
    queries: NDArray[np.floating], train: NDArray[np.floating], held_out: NDArray[np.floating], k: int = 2
) -> Distances:
    """Neighbours of queries (N, D) among training images (T, D) and held-out images (H, D)."""
    to_train, train_index = nearest(queries, train, min(k, len(train)))
    to_held_out, held_out_index = nearest(queries, held_out)
    return Distances(to_train, train_index, to_held_out[:, 0], held_out_index[:, 0])


def memorisation(
    samples: NDArray[np.floating],
    train: NDArray[np.floating],
    held_out: NDArray[np.floating],
    space: str,
    found: Distances | None = None,
) -> Memorisation:
    """Scores of sample features (N, D) against those of training (T, D) and held-out images (H, D).

    `found` are the samples' `distances`, if they are known already. Raises ValueError for fewer than two training or
    held-out images. The features should not come from a network that was fitted to the training images (a
    classifier's do): held-out images would then be further from everything than training images are, which `fair`
    finds out.
    """
    if min(len(train), len(held_out)) < 2:
        raise ValueError(f"{len(train)} training and {len(held_out)} held-out images: at least 2 of each are needed")
    found = found or distances(samples, train, held_out)
    real = left_out(train, held_out)
    share, expected = float(found.nearer_to_train.mean()), len(train) / (len(train) + len(held_out))
    score, error = excess(found, len(train), len(held_out))
    control, control_error = excess(real, len(train), len(held_out) - 1)
    return Memorisation(
        space=space,
        samples=len(samples),
        train=len(train),
        held_out=len(held_out),
        score=score,
        error=error,
        share=share,
        expected=expected,
        copies=copied_share(found.train),
        copies_held_out=copied_share(real.train),
        distance=float(np.median(found.train[:, 0])),
        distance_held_out=float(np.median(real.train[:, 0])),
        control=control,
        control_error=control_error,
    )


def left_out(train: NDArray[np.floating], held_out: NDArray[np.floating]) -> Distances:
    """Neighbours of every held-out image among the training images and the other held-out ones."""
    to_train, train_index = nearest(held_out, train, 2)
    to_others, others = nearest(held_out, held_out, 2)
    place = (others[:, 0] == np.arange(len(held_out))).astype(np.int64)  # 0 where a copy of it came before itself
    rows = np.arange(len(held_out))
    return Distances(to_train, train_index, to_others[rows, place], others[rows, place])


def excess(found: Distances, train: int, held_out: int) -> tuple[float, float]:
    """The score, and its standard deviation when the labels "training" and "held-out" are dealt out at random.

    With c_i queries nearest to real image i, the share is the sum of c_i L_i / N, where exactly T of the labels L_i
    are 1: its variance is T H / (M (M - 1)) times the sum of (c_i - mean c)^2 / N^2, with M = T + H.
    """
    total, queries = train + held_out, len(found.train)
    nearer = found.nearer_to_train
    counts = np.bincount(found.train_index[:, 0], weights=nearer), np.bincount(found.held_out_index, weights=1 - nearer)
    spread = sum(float(np.square(c).sum()) for c in counts) - queries**2 / total
    deviation = (train * held_out / (total * (total - 1)) * spread) ** 0.5 / queries
    expected = train / total
    return (float(nearer.mean()) - expected) / (1 - expected), deviation / (1 - expected)


def copied_share(to_train: Array) -> float:
    """Share of rows of rising distances (N, >= 2) whose first is below a third of the second."""
    return float((to_train[:, 0] < COPY_RATIO * to_train[:, 1]).mean())
