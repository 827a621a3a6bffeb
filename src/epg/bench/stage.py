"""Everything that is measured of one stage of a recipe."""

import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from epg.bench.images import RandomImages
from epg.bench.steps import batches_of, more, now, time_steps
from epg.checkpoint.checkpoint import listing
from epg.checkpoint.loading import generator_of
from epg.config.settings import RunConfig
from epg.cost.devices import known_peak
from epg.cost.training import training_flops
from epg.data.configured import open_training_data
from epg.data.loading.base import CachedDataset
from epg.distributed import world_size
from epg.objectives.base import GeneratorObjective
from epg.runs import build_objective
from epg.training.loop import Trainer
from epg.training.resolving import resolve
from epg.training.throughput import measured_peak, multiplied, peak_memory

MOST_IMAGES = 2048  # random ones: enough for every batch to be another


def measure(config: RunConfig, seconds: float, own_images: bool) -> dict[str, Any]:
    """The figures of one variant of a stage.

    Args:
        seconds: for each of step, loader and sampling, at least.
        own_images: read the recipe's images instead of random ones.
    """
    if own_images:
        dataset = open_training_data(config.data)
    else:
        dataset = CachedDataset(RandomImages(config, min(2 * config.training.batch_size, MOST_IMAGES)))
    config = resolve(config, dataset)
    training = config.training
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(build_objective(config), dataset, config, Path(folder))
        device = trainer.device
        started = time.perf_counter()
        trainer.train_step(next(batches_of(config, dataset, device)))
        first = now(device) - started
        step = time_steps(trainer, seconds=seconds)
        found: dict[str, Any] = {
            "recipe": config.recipe,
            "stage": config.stage,
            "precision": training.precision,
            "compile": training.compile or training.cuda_graphs,
            "activation_checkpointing": training.activation_checkpointing,
            "batch_size": training.batch_size,
            "parameters": sum(p.numel() for p in trainer.objective.network.parameters()),
            "first_step_seconds": first,
            "step_seconds": step,
            "images_per_second": training.batch_size / step,
            "memory_gib": peak_memory(device),
            **use(config, device, training.batch_size / step),
            "loader_images_per_second": rate(loading(config, trainer), seconds, training.batch_size, device),
            **sampling(trainer, seconds),
            **saving(trainer, Path(folder)),
        }
    return {**found, **surroundings(device)}


def use(config: RunConfig, device: torch.device, images_per_second: float) -> dict[str, float | None]:
    """Model FLOPs as shares of what the device can do: by its data sheet, and in a matrix product measured here. More
    than 1 says that the device was busy with something else while that was measured."""
    sheet = known_peak(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    measured = measured_peak(device, multiplied(config.training.precision))
    flops = images_per_second * training_flops(config) / world_size()
    return {
        "flops_per_image": training_flops(config),
        "peak_flops": sheet,
        "measured_peak_flops": measured,
        "mfu": None if sheet is None else flops / sheet,
        "measured_mfu": flops / measured,
    }


def rate(work: Callable[[], object], seconds: float, images: int, device: torch.device) -> float:
    """Images per second of work that does so many at once, the first time left out."""
    work()
    started, done = now(device), 0
    while not done or more(started, seconds, device):
        work()
        done += images
    return done / (now(device) - started)


def loading(config: RunConfig, trainer: Trainer) -> Callable[[], object]:
    batches = batches_of(config, trainer.dataset, trainer.device)
    return lambda: next(batches)


def sampling(trainer: Trainer, seconds: float) -> dict[str, float]:
    """Images drawn with the recipe's settings by a generator in the precision of training."""
    objective, config = trainer.objective, trainer.config
    if not isinstance(objective, GeneratorObjective):
        return {}
    model = generator_of(config, objective.network.eval(), trainer.dataset.class_names)
    count = min(64, config.training.batch_size)
    labels = model.make_labels(count, balanced=True)

    def draw() -> None:
        with torch.no_grad(), trainer.learner.autocast():
            model.sample(labels, count, batch_size=count)

    return {
        "nfe": model.count_evaluations(),
        "samples_per_second": world_size() * rate(draw, seconds, count, trainer.device),
    }


def saving(trainer: Trainer, folder: Path) -> dict[str, float]:
    """A checkpoint, written as in training but waited for; the disk is that of temporary files."""
    started = time.perf_counter()
    with trainer.writer:
        trainer.save()
        trainer.writer.finish()
    seconds = time.perf_counter() - started
    size = sum(file.stat().st_size for file in listing(folder / "checkpoints")[-1].iterdir())
    return {"checkpoint_seconds": seconds, "checkpoint_gib": size / 2**30}


def surroundings(device: torch.device) -> dict[str, Any]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} {platform.machine()}"
    return {
        "device": name,
        "processes": world_size(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
