"""What a step would take on a GPU that is not at hand, counted kernel by kernel.

    python benchmarks/roofline.py imagenet256-xl --training.batch-size 128
    python benchmarks/roofline.py imagenet256-xl --sampling --batch-size 32 --sampling.guidance 2
    python benchmarks/roofline.py photos32 --gpu H200

One step (with `--sampling` one pass of the network, times the evaluations of the recipe's sampler) runs on tensors
without numbers, and every operation that a GPU would be handed is recorded with its FLOPs and the bytes that it reads
and writes. Its kernel takes as long as the slower of both, by the data sheet times EFFICIENCY, and at least LAUNCH.
`one by one` is that, summed; `fused` leaves between two products only what comes in and goes out, as a compiler would
at its best. A GPU that waits for its host is slower: HOST seconds a launch are stated beside. Nothing is measured here.
"""

import itertools
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Table

from counting.operations import (
    DRAWING,
    HEAVY,
    LIGHT,
    UPDATE,
    Operation,
    Phase,
    Recorder,
    kind,
    network_pass,
    training_step,
)
from epg.cli import configure
from epg.config.objectives import Stage
from epg.cost.devices import named_peak
from epg.cost.training import training_flops
from epg.grids import evaluations

BANDWIDTH = {"A100": 2.04e12, "H100": 3.35e12, "H200": 4.8e12}  # bytes a second, of data sheets
EFFICIENCY = {"products": 0.7, "convolutions": 0.4, "attention": 0.4}  # of the peak; an assumption
MEMORY_EFFICIENCY = 0.85
LAUNCH = 2.5e-6  # seconds, of the smallest kernel
HOST = 6e-6  # seconds that the host needs for an operation
FUSED = "the three above, fused"
UNCOMPILED = ("--training.compile", "False", "--training.cuda-graphs", "False")
PHASES: dict[str, Phase] = {FUSED: "loss", DRAWING: "drawing"}


@dataclass(frozen=True)
class Options:
    """Counted time of a step, or of sampling, on a GPU."""

    recipe: tyro.conf.Positional[str]
    stage: Stage = "diffusion"
    gpu: Literal["A100", "H100", "H200"] = "H100"
    classes: int = 1000
    sampling: bool = False
    """Of samples, not of a training step."""
    batch_size: Annotated[int, tyro.conf.arg(metavar="N")] = 32
    """Images that are drawn together, with --sampling."""


@dataclass(frozen=True)
class Gpu:
    """By its data sheet: FLOP/s in bf16, bytes/s."""

    peak: float
    bandwidth: float

    def seconds(self, moved: float, flops: float = 0.0, name: str = "") -> float:
        """Of one kernel."""
        computing = flops / (self.peak * EFFICIENCY.get(kind(name), 1.0))
        return max(computing, moved / (self.bandwidth * MEMORY_EFFICIENCY), LAUNCH)

    def alone(self, operation: Operation) -> float:
        return self.seconds(operation.bytes, operation.flops, operation.name)


def fused(operations: Sequence[Operation], drawn: Iterable[int]) -> list[tuple[Phase, int]]:
    """Of every run of fusible operations, what it is part of and the bytes that must come in and go out."""
    last = {key: i for i, operation in enumerate(operations) for key in operation.read}
    found: list[tuple[Phase, int]] = []
    for (phase, fusible), pairs in itertools.groupby(enumerate(operations), lambda p: (p[1].phase, p[1].fusible)):
        if fusible:
            run = dict(pairs)
            wanted = {key for key, i in last.items() if i > max(run)} | set(drawn)
            found.append((phase, moved(run.values(), wanted)))
    return found


def moved(run: Iterable[Operation], wanted: set[int]) -> int:
    """Bytes of what a run reads and did not make, and of what it makes that is wanted after it."""
    coming: dict[int, int] = {}
    made: dict[int, int] = {}
    for operation in run:
        coming |= {key: size for key, size in operation.read.items() if key not in made}
        made |= operation.written
    return sum(coming.values()) + sum(size for key, size in made.items() if key in wanted)


def show(recorder: Recorder, gpu: Gpu, title: str, outcome: Callable[[float], str]) -> None:
    """The table by group, and what comes of both sums."""
    table = Table("", "launches", "TFLOP", "GB", "one by one", "fused", title=f"{title}, counted")
    operations = recorder.operations
    runs = [(phase, gpu.seconds(size)) for phase, size in fused(operations, recorder.drawn)]
    whole = [operation for operation in operations if not operation.fusible]
    for group in (*HEAVY, *LIGHT, FUSED, DRAWING, UPDATE):
        own = [operation for operation in operations if operation.group == group]
        merged = [seconds for phase, seconds in runs if PHASES.get(group) == phase]
        merged += [gpu.alone(operation) for operation in own if not operation.fusible]
        fewer = milliseconds(sum(merged)) if merged else ""
        if group == FUSED:
            table.add_row(group, f"{len(merged):,}", "", "", "", fewer)
        elif own:
            sizes = f"{sum(o.flops for o in own) / 1e12:.2f}", f"{sum(o.bytes for o in own) / 1e9:.1f}"
            table.add_row(group, f"{len(own):,}", *sizes, milliseconds(sum(map(gpu.alone, own))), fewer)
    alone, together = sum(map(gpu.alone, operations)), sum(map(gpu.alone, whole)) + sum(seconds for _, seconds in runs)
    launches = len(operations), len(whole) + len(runs)
    table.add_section()
    table.add_row(
        "together", f"{launches[0]:,} and {launches[1]:,}", "", "", milliseconds(alone), milliseconds(together)
    )
    table.add_row("the host", "", "", "", *(milliseconds(HOST * n) for n in launches))
    table.add_row("", "", "", "", outcome(alone), outcome(together))
    Console(width=120).print(table)


def milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.1f} ms"


def main(arguments: Sequence[str] | None = None) -> None:
    given = list(sys.argv[1:] if arguments is None else arguments)
    options, flags = tyro.cli(Options, args=given, return_unknown_args=True)
    config = configure(
        options.recipe, options.stage, [*flags, *UNCOMPILED, "--model.num-classes", str(options.classes)]
    )
    slower = 2 if config.training.precision == "fp32" else 1  # TF32
    gpu = Gpu(named_peak(options.gpu) / slower, BANDWIDTH[options.gpu])
    if options.sampling:
        count, nfe = options.batch_size, sum(evaluations(config.sampling, config.noise, config.shift))
        title = f"{options.recipe}: an evaluation of {count} images, {config.training.precision}, {options.gpu}"

        def outcome(seconds: float) -> str:
            return f"{count / seconds / nfe:,.1f} samples/s"

        recorded = network_pass(config, count)
    else:
        batch = config.training.batch_size
        title = f"{options.recipe} {options.stage}: {batch} images, {config.training.precision}, {options.gpu}"

        def outcome(seconds: float) -> str:
            mfu = training_flops(config) * batch / seconds / named_peak(options.gpu)
            return f"{batch / seconds:,.0f} images/s, MFU {mfu:.0%}"

        recorded = training_step(config)
    show(recorded, gpu, title, outcome)


if __name__ == "__main__":
    main()
