"""The figures of reliability, each goal with its control: the numbers behind docs/reliability.md.

    python benchmarks/reliability.py --tier nightly --out reliability.json

`nightly` takes about an hour on two cores, `release` several; `quick` tries the script itself. Each part can be run
alone (`--only kills signals`). Exit code 1 if a goal is missed or a control is not caught. What a checkpoint costs
training is `benchmarks/checkpoint.py`.
"""

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

sys.path.insert(0, str(Path(__file__).parents[1]))  # the tests' harness is used at other sizes

from goals.checkpoints import kills, mutations, power, retention
from goals.faults import inside_a_step, leaking, loaders, spiking, under_torchrun
from goals.figure import Figure
from goals.going_on import equal, resumed, signalled, worlds
from goals.numbers import drawn, order, sampling, surroundings

SIZES = {  # how many, or how long, of each part
    "quick": {
        "kills": 4,
        "mutations": 30,
        "power": 40,
        "retention": 20,
        "equality": 6,
        "worlds": 1,
        "boundaries": 2,
        "signals": 1,
        "order": 50,
        "draws": 640,
        "bytes": 4,
        "inside": 2,
        "launched": 1,
        "loaders": 1,
        "spikes": 6,
        "samples": 24,
        "leaks": 2_000,
    },
    "nightly": {
        "kills": 50,
        "mutations": 1_000,
        "power": 2_000,
        "retention": 5_000,
        "equality": 200,
        "worlds": 10,
        "boundaries": 100,
        "signals": 20,
        "order": 10_000,
        "draws": 50_000,
        "bytes": 200,
        "inside": 99,
        "launched": 7,
        "loaders": 4,
        "spikes": 300,
        "samples": 512,
        "leaks": 10_000,
    },
    "release": {
        "kills": 500,
        "mutations": 10_000,
        "power": 20_000,
        "retention": 50_000,
        "equality": 200,
        "worlds": 20,
        "boundaries": 100,
        "signals": 100,
        "order": 50_000,
        "draws": 200_000,
        "bytes": 200,
        "inside": 99,
        "launched": 7,
        "loaders": 4,
        "spikes": 900,
        "samples": 512,
        "leaks": 30_000,
    },
}


PARTS: dict[str, tuple[str, Callable[[int, Path], list[Figure]]]] = {
    "kills": ("R1", kills),
    "mutations": ("R4", mutations),
    "power": ("R2", power),
    "retention": ("R9", retention),
    "boundaries": ("R5", resumed),
    "signals": ("R8", signalled),
    "equality": ("D2", equal),
    "worlds": ("R7", worlds),
    "order": ("D3", order),
    "draws": ("D4", drawn),
    "bytes": ("D1", surroundings),
    "inside": ("F1", inside_a_step),
    "spikes": ("F2", spiking),
    "samples": ("D5", sampling),
    "launched": ("F3", under_torchrun),
    "loaders": ("F4", loaders),
    "leaks": ("F5", leaking),
}


def show(figures: Sequence[Figure]) -> None:
    table = Table("goal", "what", "found", "met", "s", box=None)
    for figure in figures:
        met = "yes" if figure.met else "NO"
        what, found = Text(figure.what), Text(figure.found)  # which may hold anything, brackets too
        table.add_row(figure.goal, what, found, met, f"{figure.seconds:.0f}" if figure.seconds else "")
    Console(width=160).print(table)


def show_stored(files: Sequence[Path]) -> int:
    """Figures of earlier runs as a markdown table, in the order of the goals."""
    stored = [Figure(**figure) for file in files for figure in json.loads(file.read_text())["figures"]]
    print("| Goal | What | Found | Met |\n|---|---|---|---|")
    for figure in sorted(stored, key=lambda figure: (figure.goal[0] != "R", figure.goal[0], int(figure.goal[1:]))):
        print(f"| {figure.goal} | {figure.what} | {figure.found} | {'yes' if figure.met else '**no**'} |")
    return int(not all(figure.met for figure in stored))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tier", choices=SIZES, default="nightly")
    parser.add_argument("--size", type=int, help="how many, or how long, instead of the tier's")
    parser.add_argument("--out", type=Path, help="JSON file for the figures, written after every part")
    parser.add_argument("--only", choices=PARTS, nargs="+", default=list(PARTS))
    parser.add_argument("--show", type=Path, nargs="+", help="only print the figures in such JSON files, as markdown")
    parser.add_argument("--scratch", type=Path, help="folder to work in; a temporary one if not given")
    options = parser.parse_args()
    if options.show:
        return show_stored(options.show)
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    machine = {"torch": torch.__version__, "python": platform.python_version(), "machine": platform.machine()}
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        for name in options.only:
            folder, started = Path(scratch) / name, time.perf_counter()
            goal, part = PARTS[name]
            folder.mkdir()
            try:
                new = part(options.size or SIZES[options.tier][name], folder)
            except Exception as error:  # the other parts have figures of their own
                new = [Figure(goal, f"{name}: could not be run", f"{type(error).__name__}: {error}"[:300], False)]
            new[-1].seconds = time.perf_counter() - started
            figures += new
            shutil.rmtree(folder, ignore_errors=True)
            if options.out:
                content = {
                    "tier": options.tier,
                    "size": options.size,
                    **machine,
                    "figures": [asdict(figure) for figure in figures],
                }
                options.out.write_text(json.dumps(content, indent=1) + "\n")
            show(new)
    show(figures)
    return int(not all(figure.met for figure in figures))


if __name__ == "__main__":
    sys.exit(main())
