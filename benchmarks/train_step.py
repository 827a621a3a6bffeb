"""Time of a training step, and what the loop adds to it.

    python benchmarks/train_step.py small --stage pretraining
    python benchmarks/train_step.py imagenet256-xl --training.batch-size 128 --compile both --json xl.json

Any flag of the recipe works (`--model.encoder.depth 4`); images are random, so no data is needed. Blocks of two kinds
alternate in one run of the trainer: the loop as it is (data, transfer, clipping, EMA, log line once per block) and the
bare step of the same module (forward, backward, optimizer) on a batch that is on the device already. The overhead is
the median over blocks of loop / bare - 1, of wall-clock time and, on a CPU, of this process's CPU time, which other
processes on the machine disturb less. With several variants each gets a fresh process; `torchrun` measures one variant
on several processes.
"""

import contextlib
import dataclasses
import io
import itertools
import json
import multiprocessing
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from rich.console import Console
from rich.table import Table

from epg.bench.images import RandomImages
from epg.cli import configure
from epg.config.objectives import Stage
from epg.config.settings import RunConfig
from epg.config.validation import check
from epg.cost.training import training_flops
from epg.data.loading.base import CachedDataset
from epg.data.loading.loader import Batch
from epg.distributed import processes, rank, world_size
from epg.runs import build_objective
from epg.training.loop import Trainer
from epg.training.parallel import gradient_sync
from epg.training.resolving import resolve
from epg.training.throughput import peak_flops, peak_memory, synchronize

Switch = Literal["recipe", "off", "on", "both"]


@dataclass(frozen=True)
class Options:
    """Time of a training step of a recipe, and the training loop's overhead."""

    recipe: tyro.conf.Positional[str]
    stage: Stage = "diffusion"
    compile: Switch = "recipe"
    """torch.compile of every transformer block."""
    checkpointing: Switch = "recipe"
    """Activation checkpointing."""
    precision: tuple[Literal["fp32", "bf16", "fp16"], ...] = ()
    """One variant for each; the recipe's if not given."""
    blocks: int = 7
    """Pairs of blocks (loop, bare)."""
    block_steps: int = 10
    """Steps of a block; the loop writes a log line in each."""
    warm_up: int = 3
    """Steps before the first block, compiling included."""
    profile: bool = False
    """Print where the time of bare steps goes."""
    json: Path | None = None
    """File for all figures."""


class Finished(Exception):  # noqa: N818
    """Leaves the trainer's loop once everything is measured."""


@dataclass(frozen=True)
class Seconds:
    """Seconds per step of one block."""

    wall: float
    cpu: float

    @classmethod
    def now(cls, device: torch.device) -> "Seconds":
        synchronize(device)
        return cls(time.perf_counter(), time.process_time())

    def since(self, start: "Seconds", steps: int) -> "Seconds":
        return Seconds((self.wall - start.wall) / steps, (self.cpu - start.cpu) / steps)


@dataclass
class Clock:
    """Takes the place of `trainer.train_step`, and times blocks of loop and of bare steps in turn."""

    trainer: Trainer
    options: Options
    done: int = 0
    loop: list[Seconds] = dataclasses.field(default_factory=list)
    bare: list[Seconds] = dataclasses.field(default_factory=list)
    started: Seconds = Seconds(0.0, 0.0)

    def __call__(self, micro_batches: Sequence[Batch]) -> Any:
        timed = self.done - self.options.warm_up
        if timed >= 0 and timed % self.options.block_steps == 0:
            if timed:
                self.loop.append(Seconds.now(self.trainer.device).since(self.started, self.options.block_steps))
            if len(self.loop) == self.options.blocks:
                raise Finished
            self.bare.append(self.time_bare(micro_batches))
            self.started = Seconds.now(self.trainer.device)
        self.done += 1
        return type(self.trainer).train_step(self.trainer, micro_batches)

    def time_bare(self, micro_batches: Sequence[Batch]) -> Seconds:
        """A block of bare steps."""
        batches = [batch.to(self.trainer.device) for batch in micro_batches]
        if not self.bare:
            bare_step(self.trainer, batches)  # its buffers are allocated, and it is compiled if it differs
        started = Seconds.now(self.trainer.device)
        for _ in range(self.options.block_steps):
            bare_step(self.trainer, batches)
        return Seconds.now(self.trainer.device).since(started, self.options.block_steps)


def bare_step(trainer: Trainer, batches: Sequence[Batch]) -> None:
    """Forward, backward, optimizer: nothing else."""
    trainer.learner.optimizer.zero_grad(set_to_none=True)
    for i, batch in enumerate(batches):
        with gradient_sync(trainer.learner.wrapped, enabled=i == len(batches) - 1):
            with trainer.learner.autocast():
                loss = trainer.learner.wrapped(trainer.learner.objective.draw(batch, trainer.step))["loss"]
            (loss / len(batches)).backward()
    trainer.learner.optimizer.step()


def measure(config: RunConfig, options: Options) -> dict[str, Any]:
    """The figures of one variant: seconds, FLOP/s as a share of the peak (MFU), GiB."""
    dataset = CachedDataset(RandomImages(config, min(2 * config.training.batch_size, 2048)))
    config = resolve(config, dataset)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(build_objective(config), dataset, config, Path(folder))
        clock = Clock(trainer, options)
        trainer.train_step = clock  # type: ignore[method-assign]
        # The terminal's lines would show rates that include the bare steps.
        with contextlib.suppress(Finished), contextlib.redirect_stderr(io.StringIO()):
            trainer.run()
        if options.profile:
            profile(trainer, dataset)
    pairs = list(zip(clock.loop, clock.bare, strict=True))
    training, step = config.training, statistics.median(block.wall for block in clock.loop)
    rate = training.batch_size / step
    return {
        "variant": {
            "precision": training.precision,
            "compile": training.compile,
            "activation_checkpointing": training.activation_checkpointing,
        },
        "step_seconds": step,
        "bare_step_seconds": statistics.median(block.wall for block in clock.bare),
        "overhead": statistics.median(loop.wall / bare.wall for loop, bare in pairs) - 1,
        "cpu_overhead": statistics.median(loop.cpu / bare.cpu for loop, bare in pairs) - 1,
        "blocks": [dataclasses.asdict(loop) | {f"bare_{k}": v for k, v in vars(bare).items()} for loop, bare in pairs],
        "images_per_second": rate,
        "mfu": rate * training_flops(config) / (peak_flops(trainer.device, training.precision) * world_size()),
        "peak_flops": peak_flops(trainer.device, training.precision),
        "peak_memory_gib": peak_memory(trainer.device),
        "parameters": sum(p.numel() for p in trainer.objective.network.parameters()),
        "batch_size": training.batch_size,
        "processes": world_size(),
        "threads": torch.get_num_threads(),
        "device": device_name(trainer.device),
        "torch": torch.__version__,
    }


def profile(trainer: Trainer, dataset: CachedDataset) -> None:
    """Prints the operations that take most of the time of three bare steps."""
    count = trainer.config.training.micro_batch or trainer.config.training.batch_size // world_size()
    indices = torch.arange(count) % len(dataset)
    batch = Batch(dataset.images[indices], torch.from_numpy(dataset.labels)[indices], indices, 0).to(trainer.device)
    with torch.profiler.profile() as profiler:
        for _ in range(3):
            bare_step(trainer, [batch])
    key = "self_cuda_time_total" if trainer.device.type == "cuda" else "self_cpu_time_total"
    if rank() == 0:
        print(profiler.key_averages().table(sort_by=key, row_limit=15, max_name_column_width=60))


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} {platform.machine()}"


def variants(config: RunConfig, options: Options) -> Iterator[RunConfig]:
    """The configuration with everything that is to be compared."""

    def values(switch: Switch, own: bool) -> list[bool]:
        return {"recipe": [own], "off": [False], "on": [True], "both": [False, True]}[switch]

    training = config.training
    for precision, compiled, checkpointing in itertools.product(
        options.precision or (training.precision,),
        values(options.compile, training.compile),
        values(options.checkpointing, training.activation_checkpointing),
    ):
        changes: dict[str, Any] = {
            "precision": precision,
            "compile": compiled,
            "activation_checkpointing": checkpointing,
            "steps": max(training.steps, options.warm_up + options.blocks * options.block_steps + 1),
            "log_every": options.block_steps,
            "checkpoint_every": 10**9,
            "preview_every": 0,
            "timeout": 0.0,
        }
        yield check(config.model_copy(update={"training": training.model_copy(update=changes)}))


def show(results: Sequence[dict[str, Any]], title: str) -> None:
    """The table."""
    columns = ["variant", "step", "bare", "overhead", "of CPU time", "images/s", "MFU", "memory"]
    table = Table(*columns, title=title)
    for r in results:
        names = [r["variant"]["precision"]]
        names += [name for name in ("compile", "activation_checkpointing") if r["variant"][name]]
        table.add_row(
            " ".join(names),
            f"{1e3 * r['step_seconds']:.1f} ms",
            f"{1e3 * r['bare_step_seconds']:.1f} ms",
            f"{100 * r['overhead']:+.1f} %",
            f"{100 * r['cpu_overhead']:+.1f} %" if r["device"].startswith("cpu") else "",
            f"{r['images_per_second']:.1f}",
            f"{100 * r['mfu']:.1f} %",
            f"{r['peak_memory_gib']:.2f} GiB",
        )
    Console(width=120).print(table)  # a narrower terminal would break every cell


def main(arguments: Sequence[str] | None = None) -> None:
    options, overrides = tyro.cli(Options, args=arguments, return_unknown_args=True)
    config = configure(options.recipe, options.stage, overrides)
    configs = list(variants(config, options))
    with processes():
        if len(configs) == 1 or world_size() > 1:
            results = [measure(c, options) for c in configs]
        else:  # a process each: peak memory and compiled code must not carry over
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
                results = list(pool.map(measure, configs, itertools.repeat(options)))
        if rank() == 0:
            r = results[0]
            show(
                results,
                f"{options.recipe} {options.stage}: {r['parameters'] / 1e6:.1f}M parameters, batch {r['batch_size']}, "
                f"{r['processes']} x {r['device']} ({r['peak_flops'] / 1e12:.3g} TFLOP/s), torch {r['torch']}",
            )
            if options.json is not None:
                options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
