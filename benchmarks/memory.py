"""Memory of training steps on a CPU beside what `epg info` says.

    python benchmarks/memory.py

Compared are the estimate, in float32 and without checkpointing, and the peak of the process's resident set in three
steps on random images, less what it held before the network was built, when two steps of a tiny one had loaded every
library.
Linux alone. Each case runs in a process of its own; all of them take about 7 GiB and two minutes of a core.
"""

import argparse
import gc
import json
import subprocess
import sys
from pathlib import Path

CASES = [
    ("imagenet64", "pretraining", 8),
    ("imagenet64", "consistency", 8),
    ("imagenet256-b", "diffusion", 2),
    ("small", "diffusion", 128),
]
STEPS = 3
MIB = 2**20
TINY = {
    "data": {"image_size": 16},
    "model": {
        "patch_size": 4,
        "encoder": {"depth": 1, "width": 32, "heads": 2},
        "decoder": {"width": 32, "heads": 2},
        "projector_hidden": 16,
        "projector_out": 16,
    },
    "training": {"batch_size": 4},
}


def resident(name: str) -> int:
    """Bytes of VmRSS, now, or VmHWM, the largest so far."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def measure(recipe: str, stage: str, batch: int) -> None:
    """Prints both numbers of one case, in bytes."""
    from epg.bench.images import RandomImages
    from epg.config.recipe import merge, run_config
    from epg.config.settings import RunConfig
    from epg.config.validation import checked
    from epg.cost.memory import memory
    from epg.data.loading.loader import BatchLoader
    from epg.runs import build_objective
    from epg.training.learner import Learner

    plain = {"precision": "fp32", "device": "cpu", "micro_batch": None, "compile": False, "preview_every": 0}
    content = merge(run_config(recipe, stage).model_dump(), {"training": {**plain, "batch_size": batch}})
    content = merge(content, {"training": {"activation_checkpointing": False, "cuda_graphs": False}})
    content["model"]["num_classes"] = content["model"]["num_classes"] or 10
    config = checked(content, recipe)

    def steps(config: RunConfig, count: int) -> None:
        size = config.training.batch_size
        loader = BatchLoader(RandomImages(config, size), batch_size=size, seed=0, workers=0)
        learner = Learner(build_objective(config), config, Path(), lambda: ())
        for _, batches in zip(range(count), loader, strict=False):
            learner.take(batches)
            learner.settle()

    steps(checked(merge(content, TINY), recipe), 2)
    gc.collect()
    before = resident("VmRSS")
    steps(config, STEPS)
    told = memory(config, batch, checkpointing=False).total
    print(json.dumps({"estimate": told, "measured": resident("VmHWM") - before}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", nargs="*", help="RECIPE STAGE IMAGES of a single one")
    case = parser.parse_args().case
    if case:
        measure(case[0], case[1], int(case[2]))
        return
    for recipe, stage, batch in CASES:
        command = [sys.executable, __file__, recipe, stage, str(batch)]
        found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
        ratio = found["estimate"] / found["measured"]
        sizes = ", ".join(f"{name} {value / MIB:,.0f} MiB" for name, value in found.items())
        print(f"{recipe}, {stage}, {batch} images: {sizes}, ratio {ratio:.2f}", flush=True)


if __name__ == "__main__":
    main()
