"""Time of drawing images, and what is added to the network's own time.

    python benchmarks/sample.py imagenet64 --batch-size 4 --sampling.steps 8
    python benchmarks/sample.py imagenet256-xl --sampling.guidance 2 --dtype bf16 --compile --device cuda \\
        --batch-size 64 --count 512 --json xl.json

The weights are random. Each round times the network alone (every batch size that the sampler calls it with, as often
as it does) and then the work of `epg sample` in a fresh folder, PNG files included; overhead is the median over rounds
of the second by the first, less 1: of this process's CPU time on a CPU, which other processes disturb less, else of
wall-clock time. "Host" is the CPU time of everything but the network, measured with a network that costs nothing: a
GPU is busy meanwhile. Any flag of the recipe works.
"""

import contextlib
import copy
import dataclasses
import io
import json
import platform
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

from epg.checkpoint.loading import generator_of
from epg.cli import configure
from epg.config.settings import RunConfig
from epg.cost.network import epg_cost
from epg.denoiser import Denoiser
from epg.generator import Generator
from epg.networks.build import build_epg
from epg.sampling import Request, fitted
from epg.sampling.job import Job
from epg.training.throughput import peak_flops, peak_memory, synchronize


@dataclasses.dataclass(frozen=True)
class Options:
    """Time of drawing images with a recipe's generator."""

    recipe: tyro.conf.Positional[str]
    stage: Literal["diffusion", "consistency"] = "diffusion"
    count: int = 16
    """Images of a round."""
    batch_size: int = 8
    rounds: int = 5
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    compile: bool = False
    device: str = "cpu"
    json: Path | None = None
    """File for all figures."""


class Cheap(Denoiser):
    """Costs next to nothing; its images are noise, which takes PNG longest."""

    def forward(self, x: torch.Tensor, *rest: Any) -> torch.Tensor:
        return x.clamp(-1, 1)


def random_generator(config: RunConfig) -> Generator:
    """The recipe's network with weights that are not zero."""
    classes = 10 if config.model.num_classes is None else config.model.num_classes
    config = config.model_copy(update={"model": config.model.model_copy(update={"num_classes": classes})})
    torch.manual_seed(0)
    network = build_epg(config.model, config.data, config.gaussians, config.internal).eval()
    torch.nn.init.normal_(network.decoder.out.weight, std=0.02)
    return generator_of(config, network)


def calls_of(job: Job) -> Counter[int]:
    """How often drawing a batch calls the network, by the size of the call."""
    calls: Counter[int] = Counter()
    hook = job.model.denoiser.register_forward_pre_hook(lambda module, args: calls.update([len(args[0])]))
    job.draw_batch(range(job.request.batch_size))
    hook.remove()
    return calls


@dataclasses.dataclass(frozen=True)
class Seconds:
    wall: float
    cpu: float

    @classmethod
    def now(cls, device: torch.device) -> "Seconds":
        synchronize(device)
        return cls(time.perf_counter(), time.process_time())

    @classmethod
    def since(cls, start: "Seconds", device: torch.device) -> "Seconds":
        end = cls.now(device)
        return cls(end.wall - start.wall, end.cpu - start.cpu)

    def of(self, device: torch.device) -> float:
        return self.cpu if device.type == "cpu" else self.wall


def network_seconds(job: Job, calls: Counter[int], batches: int) -> Seconds:
    """The network alone: the same calls, nothing between them."""
    model, device = job.model, job.model.device
    inputs = {}
    for size in calls:
        labels = torch.zeros(size, dtype=torch.long) if model.num_classes else None
        inputs[size] = torch.randn(size, *model.image_shape, device=device), model.classes.placed(labels, size, device)
    evaluate = {size: plain(model, labels) for size, (_, labels) in inputs.items()}
    start = Seconds.now(device)
    with torch.no_grad():
        for _ in range(batches):
            for size, number in calls.items():
                for _ in range(number):
                    evaluate[size](inputs[size][0], 1.0)
    return Seconds.since(start, device)


def plain(model: Generator, labels: torch.Tensor | None) -> Any:
    """The denoiser without guidance, in the model's precision."""
    return model.denoiser_for(labels, model.sampling.model_copy(update={"guidance": 1.0}))


def command_seconds(job: Job, again: int) -> Seconds:
    """The work of `epg sample` after loading, in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        fresh = Job(fitted(job.model, dataclasses.replace(job.request, seed=again, compile=False)), Path(folder))
        start = Seconds.now(job.model.device)
        fresh.draw()
        return Seconds.since(start, job.model.device)


def measure(config: RunConfig, options: Options) -> dict[str, Any]:
    request = Request(
        count=options.count,
        batch_size=options.batch_size,
        dtype=options.dtype,
        compile=options.compile,
        device=options.device,
    )
    generator = random_generator(config)
    cost = epg_cost(config.model.model_copy(update={"num_classes": generator.num_classes}), config.data)
    job = Job(fitted(generator, request), Path("unused"))
    device, batches = generator.device, options.count // options.batch_size
    calls = calls_of(job)  # warms up, compiles
    rounds = []
    for number in range(options.rounds):
        alone = network_seconds(job, calls, batches)
        rounds.append((alone, command_seconds(job, number)))
    idle = copy.copy(job)
    idle.model = dataclasses.replace(generator, denoiser=Cheap(generator.denoiser.network))
    beside = [command_seconds(idle, number).cpu for number in range(options.rounds)]
    seconds = statistics.median(whole.wall for _, whole in rounds)
    nfe = job.record["nfe"]
    flops = 2 * cost.macs_with_attention * nfe
    peak = peak_flops(device, options.dtype)
    return {
        "recipe": config.recipe,
        "stage": config.stage,
        "sampling": job.sampling.model_dump(mode="json"),
        "nfe": nfe,
        "batch_size": options.batch_size,
        "dtype": options.dtype,
        "compile": options.compile,
        "calls": dict(calls),
        "forward_ms": 1e3 * statistics.median(alone.of(device) for alone, _ in rounds) / batches / calls.total(),
        "overhead": statistics.median(whole.of(device) / alone.of(device) for alone, whole in rounds) - 1,
        "host_ms_per_image": 1e3 * statistics.median(beside) / options.count,
        "rounds": [(dataclasses.asdict(alone), dataclasses.asdict(whole)) for alone, whole in rounds],
        "images_per_second": options.count / seconds,
        "gflops_per_image": flops / 1e9,
        "share_of_peak": options.count / seconds * flops / peak,
        "peak_flops": peak,
        "peak_memory": peak_memory(device),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    given = list(sys.argv[1:] if arguments is None else arguments)
    options, rest = tyro.cli(Options, args=given, return_unknown_args=True)
    if options.count % options.batch_size or options.rounds < 1:
        raise SystemExit("--count must be a multiple of --batch-size, --rounds at least 1")
    figures = measure(configure(options.recipe, options.stage, rest), options)
    print(
        f"{figures['recipe']} {figures['stage']}, {figures['sampling']['sampler']}, {figures['nfe']:g} evaluations: "
        f"{figures['images_per_second']:.3g} images/s, forward {figures['forward_ms']:.1f} ms, overhead "
        f"{figures['overhead']:.1%}, host {figures['host_ms_per_image']:.1f} ms an image, "
        f"{figures['share_of_peak']:.0%} of the peak"
    )
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
