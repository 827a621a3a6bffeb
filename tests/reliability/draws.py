"""D3, D4: order, noise, levels, dropout and views are functions of (seed, step, place) and of nothing else."""

import hashlib
import itertools
import random
import time
from collections import Counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from epg.data.loading.base import ImageDataset
from epg.data.loading.loader import BatchLoader
from epg.data.views.augment import MocoViews
from epg.objectives.base import keep_masks
from epg.randomness import Draws

CPU = torch.device("cpu")


class Numbered(ImageDataset):
    """Images that are nothing but their number."""

    def __init__(self, count: int) -> None:
        super().__init__(np.full(count, -1), (), 1, 1)

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], int]:
        return np.full((1, 1, 1), index % 256, np.uint8), -1

    def describe(self, index: int) -> str:
        return f"number {index}"

    def fingerprint(self) -> str:
        return "0" * 64


# D3: the order --------------------------------------------------------------------------------------------------------


def global_batches(
    dataset: ImageDataset, steps: int, batch: int, world: int, micro: int, seed: int, start: int
) -> list[list[int]]:
    """Samples of these steps, put together from what every rank of `world` reads."""
    more = {"seed": seed, "start_step": start}
    loaders = [
        iter(BatchLoader(dataset, rank=rank, world_size=world, batch_size=batch, micro_batch=micro, **more))
        for rank in range(world)
    ]
    found = []
    for _ in range(steps):
        parts = sorted((b for loader in loaders for b in next(loader)), key=lambda part: part.first)
        assert [part.first for part in parts] == list(range(0, batch, micro))
        found.append([int(i) for part in parts for i in part.indices])
    return found


def order_problem(chooser: random.Random, loader: Any = global_batches) -> str:
    """One random case of (images, processes, micro-batch, seed, start); what is wrong, if anything."""
    count, world = chooser.randint(1, 60), chooser.randint(1, 16)
    micro = chooser.randint(1, 3)
    batch = world * micro * chooser.randint(1, 2)
    seed, start = chooser.randrange(2**31), chooser.choice([0, chooser.randint(0, 50), chooser.randint(0, 10**6)])
    dataset, steps = Numbered(count), chooser.randint(1, 3)
    late = loader(dataset, steps, batch, world, micro, seed, start)
    if late != loader(dataset, steps, batch, 1, batch, seed, start):
        return f"depends on the division: {world} processes, micro-batches of {micro}"
    if start <= 50:
        if late != loader(dataset, start + steps, batch, 1, batch, seed, 0)[start:]:
            return f"resumed at {start} is no continuation"
        stream = list(itertools.chain(*loader(dataset, -(-2 * count // batch), batch, 1, batch, seed, 0)))
        if any(sorted(stream[e * count : (e + 1) * count]) != list(range(count)) for e in range(2)):
            return f"an epoch of {count} images is no permutation"
    return ""


def seek_seconds(step: int = 10**9) -> float:
    """Time to the first batch of a step far away."""
    loader = BatchLoader(Numbered(1_281_167), batch_size=256, seed=0, start_step=step)
    started = time.perf_counter()
    next(iter(loader))
    return time.perf_counter() - started


class Stateful:
    """The control: a sampler with a state of its own, which a new process does not have."""

    def __init__(self) -> None:
        self.generator = np.random.default_rng(0)

    def __call__(self, dataset: Any, steps: int, batch: int, *_: int) -> list[list[int]]:
        return [self.generator.permutation(len(dataset))[:batch].tolist() for _ in range(steps)]


# D4: the draws --------------------------------------------------------------------------------------------------------


def draws_of(first: int, count: int, step: int) -> dict[str, torch.Tensor]:
    """Everything that training draws for these samples of the global batch of a step, one row per sample."""
    draws = Draws(0, step, first, count, CPU)
    found = {
        "noise": draws.normal("noise", (1, 4, 4)).flatten(1),
        "level": draws.normal("level")[:, None],
        "label dropout": draws.uniform("label dropout")[:, None],
        "dropout": keep_masks(draws, 2, (4, 4), 0.5)[1].flatten(1),
    }
    for view in (0, 1):
        found[f"view {view}"] = draws.uniform(f"view {view}", (MocoViews.numbers,))  # all that a view is made of
    return found


def recorded(samples: int, batch: int, world: int, micro: int) -> dict[str, torch.Tensor]:
    """All draws of the first `samples` samples of training, as `world` processes with such micro-batches make them."""
    rows: dict[str, list[torch.Tensor]] = {}
    for step in range(samples // batch):
        for first in range(0, batch, min(micro, batch // world)):
            for name, values in draws_of(first, min(micro, batch // world), step).items():
                rows.setdefault(name, []).append(values)
    return {name: torch.cat(values) for name, values in rows.items()}


def repeated(drawn: dict[str, torch.Tensor]) -> int:
    """Number of draws that two samples, or two purposes, share: of whole rows that have enough bits to differ."""
    keys = Counter(
        hashlib.blake2b(row.tobytes(), digest_size=12).digest()
        for name in ("noise", "view 0", "view 1")
        for row in drawn[name].numpy()
    )
    return sum(n - 1 for n in keys.values())


def p_values(drawn: dict[str, torch.Tensor]) -> dict[str, float]:
    """Kolmogorov-Smirnov: noise and levels against the normal distribution, label dropout against the uniform one."""
    laws = {"noise": "norm", "level": "norm", "label dropout": "uniform"}
    return {name: float(stats.kstest(drawn[name].flatten().double().numpy(), law).pvalue) for name, law in laws.items()}
