"""The time of a training step."""

import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from epg.config.settings import RunConfig
from epg.data.loading.base import ImageDataset
from epg.data.loading.loader import Batch, BatchLoader
from epg.distributed import agree, rank, world_size
from epg.runs import build_objective
from epg.training.loop import Trainer
from epg.training.throughput import synchronize

BLOCK = 3  # steps between two readings of the clock, which wait for an accelerator


def now(device: torch.device) -> float:
    """Seconds, when the device has done what it was given."""
    synchronize(device)
    return time.perf_counter()


def more(begun: float, seconds: float, device: torch.device) -> bool:
    """Whether there is time left on any process: all do as many rounds."""
    return bool(agree(now(device) - begun < seconds, device=device)[0])


def batches_of(config: RunConfig, dataset: ImageDataset, device: torch.device) -> Iterator[Sequence[Batch]]:
    """The batches that training with this configuration reads, endless."""
    loader = BatchLoader(
        dataset,
        batch_size=config.training.batch_size,
        seed=config.seed,
        rank=rank(),
        world_size=world_size(),
        micro_batch=config.training.micro_batch,
        workers=config.data.workers,
        pin_memory=device.type == "cuda",
    )
    return iter(loader)


def time_steps(trainer: Trainer, *, seconds: float = 0.0, warm_up: int = 2, fewest: int = 6) -> float:
    """Median seconds of a training step: data, copies, gradients, optimizer and averages; nothing is written.

    Args:
        seconds: to measure for, at least `fewest` steps.
        warm_up: steps before, compiling included.
    """
    batches = batches_of(trainer.config, trainer.dataset, trainer.device)
    for _ in range(warm_up):
        trainer.train_step(next(batches))
    times: list[float] = []
    begun = now(trainer.device)
    while BLOCK * len(times) < fewest or more(begun, seconds, trainer.device):
        started = now(trainer.device)
        for _ in range(BLOCK):
            trainer.train_step(next(batches))
        trainer.settle()
        times.append((now(trainer.device) - started) / BLOCK)
    return statistics.median(times)


def seconds_per_step(config: RunConfig, dataset: ImageDataset) -> float:
    """`time_steps` of a run that would begin."""
    with tempfile.TemporaryDirectory() as folder:
        return time_steps(Trainer(build_objective(config), dataset, config, Path(folder)))
