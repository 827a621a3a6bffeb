"""EPG's training step beside SiT's own code, at equal tokens and about equal parameters.

    git clone https://github.com/willisma/SiT
    pip install timm torchdiffeq
    OMP_NUM_THREADS=1 python benchmarks/sit.py SiT

A step is the loss of a batch of given images and labels, its gradient, AdamW, and the average; SiT's as its `train.py`
has it, on pixels. Steps of both alternate in one process; what is shown is its CPU time, which other processes disturb
least.
"""

import copy
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from epg.bench.images import RandomImages
from epg.cli import configure
from epg.data.loading.base import CachedDataset
from epg.data.loading.loader import Batch, BatchLoader
from epg.runs import build_objective
from epg.training.loop import Trainer
from epg.training.resolving import resolve

PLAIN = "--objective.parameterization x --optimizer.kind adamw --model.stem 0 --training.precision fp32"
HEAD = 64  # width of an attention head


@dataclass(frozen=True)
class Options:
    """CPU time of a training step, EPG's beside SiT's."""

    sit: tyro.conf.Positional[Path]
    """A clone of SiT."""
    width: int = 256
    depth: int = 4
    """Of EPG's encoder, and of its decoder."""
    sit_depth: int = 7
    """Of SiT, of the same width."""
    patch_size: int = 4
    batch_size: int = 32
    pairs: int = 8
    """Pairs of blocks of steps, in turn."""
    block_steps: int = 3


def main(arguments: Sequence[str] | None = None) -> None:
    options = tyro.cli(Options, args=arguments)
    shape = " ".join(
        f"--model.{part}.width {options.width} --model.{part}.heads {options.width // HEAD}"
        for part in ("encoder", "decoder")
    )
    size = f"--model.encoder.depth {options.depth} --model.patch-size {options.patch_size}"
    flags = f"{PLAIN} {shape} {size} --training.batch-size {options.batch_size} --data.workers 0"
    config = configure("small", "diffusion", flags.split())
    dataset = CachedDataset(RandomImages(config, 2 * options.batch_size))
    config = resolve(config, dataset)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(build_objective(config), dataset, config, Path(folder))
        batches = iter(BatchLoader(dataset, batch_size=options.batch_size, seed=0))
        ours = sum(p.numel() for p in trainer.learner.objective.network.parameters())
        theirs, step = sit_step(options, config.model.num_classes or 0, config.data.image_size)

        def seconds(take: Callable[[list[Batch]], object]) -> float:
            begin = time.process_time()
            for _ in range(options.block_steps):
                take(next(batches))
            return (time.process_time() - begin) / options.block_steps

        seconds(step), seconds(trainer.train_step)
        pairs = [(seconds(step), seconds(trainer.train_step)) for _ in range(options.pairs)]
    sit, epg = (1e3 * statistics.median(times) for times in zip(*pairs, strict=True))
    ratio = statistics.median((a / theirs) / (b / ours) for a, b in pairs)
    print(f"SiT, {theirs / 1e6:.2f}M parameters: {sit:.0f} ms of CPU a step; EPG, {ours / 1e6:.2f}M: {epg:.0f} ms")
    print(f"images a second and parameter, EPG's to SiT's: {ratio:.3f}")


def sit_step(options: Options, classes: int, image_size: int) -> tuple[int, Callable[[list[Batch]], object]]:
    """SiT's trained parameters, and its step."""
    sys.path.insert(0, str(options.sit))
    from models import SiT  # type: ignore[import-not-found]
    from transport import create_transport  # type: ignore[import-not-found]

    network = SiT(
        input_size=image_size,
        patch_size=options.patch_size,
        in_channels=3,
        hidden_size=options.width,
        depth=options.sit_depth,
        num_heads=options.width // HEAD,
        num_classes=classes,
        learn_sigma=False,
    )
    transport, average = create_transport(), copy.deepcopy(network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, weight_decay=0)

    def parameters() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return zip(average.parameters(), network.parameters(), strict=True)

    def step(batches: list[Batch]) -> None:
        (batch,) = batches
        images = batch.images.float() / 127.5 - 1
        loss = transport.training_losses(network, images, {"y": batch.labels})["loss"].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for kept, value in parameters():
                kept.mul_(0.9999).add_(value, alpha=1 - 0.9999)

    return sum(p.numel() for p in network.parameters() if p.requires_grad), step


if __name__ == "__main__":
    main()
