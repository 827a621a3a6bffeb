"""How long a checkpoint stops training, and what it costs in the background.

    python benchmarks/checkpoint.py imagenet256-xl --json pause.json

Builds the recipe's network, its average and the optimizer's moments, and saves three times through the training
loop's own `save`. Training waits for the copy into memory and nothing else: *beyond the copy* is what is left of the
pause. Meanwhile small matrix products stand for training steps; the longest gap between two of them shows what the
background write takes from a process. Needs memory for everything twice (EPG-XL: 19 GB) and disk for three
checkpoints.
"""

import dataclasses
import json
import platform
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from rich.console import Console

from epg.cli import configure
from epg.config.objectives import Stage
from epg.config.settings import RunConfig
from epg.data.loading.base import ImageDataset
from epg.runs import build_objective
from epg.storage.artefact import size_of
from epg.training.loop import Trainer
from epg.training.snapshot import capture
from epg.training.throughput import synchronize

LIMIT = 1.0  # seconds beyond the copy


@dataclass(frozen=True)
class Options:
    """The pause of a checkpoint."""

    recipe: tyro.conf.Positional[str]
    stage: Stage = "diffusion"
    saves: int = 3
    scratch: Path | None = None
    """Folder to write into; a temporary one if not given."""
    json: Path | None = None
    """File for the figures."""


@dataclass
class Save:
    """Seconds of one save."""

    pause: float
    copy: float
    write: float
    longest_step: float
    median_step: float

    @property
    def beyond(self) -> float:
        return self.pause - self.copy


class NoImages(ImageDataset):
    """A name for a data set that is never read."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__(np.zeros(1, np.int64), ("one",), config.data.image_size, config.data.channels)

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], int]:
        raise NotImplementedError

    def describe(self, index: int) -> str:
        return "no image"

    def fingerprint(self) -> str:
        return "0" * 64


def trained(config: RunConfig, folder: Path) -> Trainer:
    """A trainer whose optimizer has moments, as after the first step."""
    trainer = Trainer(build_objective(config), NoImages(config), config, folder)
    for parameter in trainer.learner.parameters:
        parameter.grad = torch.zeros_like(parameter)
    trainer.learner.optimizer.step()
    trainer.learner.optimizer.zero_grad(set_to_none=True)
    return trainer


def save(trainer: Trainer) -> Save:
    """One checkpoint, with steps of about 20 ms going on beside its write."""
    copies, take = [], type(trainer.writer._snapshot).take

    def timed(*arguments):  # type: ignore[no-untyped-def]
        started = time.perf_counter()
        taken = take(trainer.writer._snapshot, *arguments)
        copies.append(time.perf_counter() - started)
        return taken

    trainer.writer._snapshot.take = timed  # type: ignore[method-assign]
    trainer.step += 1
    synchronize(trainer.device)
    started = time.perf_counter()
    trainer.save()
    pause = time.perf_counter() - started
    a, steps = torch.randn(1024, 1024, device=trainer.device), []
    while trainer.writer.busy(0.0):
        begun = time.perf_counter()
        a @ a
        synchronize(trainer.device)
        steps.append(time.perf_counter() - begun)
    trainer.writer.finish()
    return Save(pause, copies[0], time.perf_counter() - started, max(steps), statistics.median(steps))


def main() -> int:
    options = tyro.cli(Options, description=__doc__)
    torch.set_num_threads(1)
    config = configure(options.recipe, options.stage, [])
    classes = 1000 if config.model.num_classes is None else config.model.num_classes
    config = config.model_copy(update={"model": config.model.model_copy(update={"num_classes": classes})})
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        trainer = trained(config, Path(folder))
        size = size_of(capture(trainer.objective, trainer.learner.optimizer, trainer.learner.ema))
        parameters = sum(p.numel() for p in trainer.objective.network.parameters())
        saves = [save(trainer) for _ in range(options.saves)]
    console = Console(width=120, highlight=False)
    console.print(f"{options.recipe}: {parameters / 1e6:.0f}M parameters, {size / 1e9:.2f} GB on {trainer.device}")
    for i, one in enumerate(saves):
        console.print(
            f"save {i + 1}: pause {one.pause:.2f} s, of it copy {one.copy:.2f} s, beyond the copy {one.beyond:.3f} s; "
            f"written, read back and exported after {one.write:.1f} s; steps meanwhile: median "
            f"{1e3 * one.median_step:.0f} ms, longest {1e3 * one.longest_step:.0f} ms"
        )
    if options.json:
        content = {"bytes": size, "parameters": parameters, "machine": platform.machine(), "torch": torch.__version__}
        figures = [dataclasses.asdict(one) | {"beyond": one.beyond} for one in saves]
        options.json.write_text(json.dumps({**content, "saves": figures}, indent=1) + "\n")
    return int(any(one.beyond > LIMIT for one in saves))


if __name__ == "__main__":
    raise SystemExit(main())
