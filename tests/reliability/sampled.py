"""D5: the same images and metrics whatever the batch, the order, the number of processes, or how often it was killed.

The model is tiny, with weights so large that the noise decides what its images are.
"""

import hashlib
import multiprocessing
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from epg.checkpoint.loading import load
from epg.evaluation import receipt
from epg.generator import Generator
from epg.sampling import Request
from tests import started
from tests.generators import lively_epg, save_export
from tests.helpers import run_state, tiny_config

BATCH, GUIDANCE = 4, 2.0
VALUES, LEVELS, METRICS = 1e-5, 1, 1e-6
"""What is allowed: of network values, of grey levels, and of metrics relative to their size."""


def export(folder: Path) -> Path:
    """The stochastic sampler draws noise on the way, too."""
    return save_export(folder, tiny_config(sampling={"sampler": "edm_stochastic", "steps": 6}))


def request(count: int, **changes: Any) -> Request:
    more: dict[str, Any] = {"batch_size": BATCH, "device": "cpu", "changes": {"guidance": GUIDANCE}, **changes}
    return Request(count=count, **more)


def pictures(out: Path) -> dict[str, str]:
    """Sha256 of every picture by its name."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in out.glob("*.png")}


def pixels(out: Path, count: int) -> NDArray[np.int64]:
    return np.stack([np.asarray(Image.open(out / f"{i:06d}.png"), np.int64) for i in range(count)])


def values(model: Generator, order: Sequence[int], batch: int) -> Tensor:
    """What the network gives for these images before rounding, drawn in batches in this order; sorted by image."""
    labels = model.make_labels(len(order), balanced=True)
    assert labels is not None
    sampling, found = model.sampling.model_copy(update={"guidance": GUIDANCE}), []
    for start in range(0, len(order), batch):
        indices = list(order[start : start + batch])
        found.append(model.draw(labels[indices], indices, 0, sampling))
    return torch.cat(found)[torch.tensor(order).argsort()]


def largest_difference(export: Path, count: int, batches: Sequence[int], chooser: random.Random) -> float:
    """Of network values, between batches of all these sizes in order and in random orders."""
    model, found = load(export), []
    for batch in batches:
        found.append(values(model, range(count), batch))
        found.append(values(model, chooser.sample(range(count), count), batch))
    return max(float((one - found[0]).abs().max()) for one in found)


def run_and_kill(work: Callable[[], None], out: Path, count: int, kills: int, chooser: random.Random) -> int:
    """Starts the work again and again, killing it after a few more images each time; returns the number of kills."""
    processes, done = multiprocessing.get_context("fork"), 0
    while True:
        process = processes.Process(target=work)
        process.start()
        goal = len(list(out.glob("0*.png"))) + chooser.randint(1, count // kills - 3)
        while process.is_alive() and (done >= kills or len(list(out.glob("0*.png"))) < goal):
            time.sleep(0.001)
        if not process.is_alive():
            assert process.exitcode == 0
            return done
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        done += 1


def sample(export: Path, out: Path, count: int, *more: str, processes: int = 1) -> subprocess.CompletedProcess[str]:
    """`epg sample` with the settings of `request`."""
    words = ["--count", str(count), "--batch-size", str(BATCH), "--device", "cpu", "--guidance", str(GUIDANCE), *more]
    return started.epg("sample", export, "--out", out, *words, processes=processes)


class OneGenerator:
    """The control, and what most codes have: noise from one generator, which depends on what was drawn before."""

    def __init__(self) -> None:
        self.generator = torch.Generator()
        self.original = Generator.unit_noise

    def __enter__(self) -> Self:
        def unit_noise(model: Generator, indices: Sequence[int], seed: int = 0, step: int = -1) -> Tensor:
            return torch.randn(len(indices), *model.image_shape, generator=self.generator)

        Generator.unit_noise = unit_noise  # type: ignore[method-assign]
        return self.restart()

    def restart(self) -> Self:
        self.generator.manual_seed(0)
        return self

    def __exit__(self, *_: object) -> None:
        Generator.unit_noise = self.original  # type: ignore[method-assign]


# Metrics --------------------------------------------------------------------------------------------------------------


def run_of_digits(folder: Path) -> Path:
    """An export that draws pictures of digits' classes."""
    from epg.checkpoint import export

    config = tiny_config(model={"num_classes": 10})
    state = run_state(config, [str(i) for i in range(10)])
    export.write(folder / "export", 7, {"model": {}, "ema-0.9": lively_epg(config).state_dict()}, state)
    return folder


def metrics(run: Path, out: Path, count: int, *more: str, processes: int = 1) -> dict[str, float]:
    """Frechet distance, precision, recall and accuracy of `epg evaluate`, in one process or several."""
    words = ["--count", str(count), "--steps", "3", "--batch-size", "8", "--no-cache", *more]
    done = started.epg("evaluate", run, *words, "--out", out, processes=processes)
    assert done.returncode == 0, done.stderr[-2000:]
    return {name: metric.value for name, metric in receipt.read(out).metrics.items()}


def relative(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    """Largest difference of two sets of metrics, relative to their size."""
    assert one.keys() == other.keys()
    return max(abs(one[name] - other[name]) / max(abs(one[name]), 1e-12) for name in one)
