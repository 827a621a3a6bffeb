"""The reliability figures of checkpoints, each goal with its control: the numbers behind docs/reliability.md.

    python benchmarks/reliability.py --tier nightly --out reliability.json

`nightly`: 50 kills, 1,000 mutations, 5,000 events of retention (minutes). `release`: 500 kills, 10,000 mutations.
`quick` tries the script itself. Exit code 1 if a goal is missed or a control is not caught.
"""

import argparse
import json
import platform
import random
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))  # the tests' harness is used at other sizes

from tests.reliability import test_crash_points, test_retention
from tests.reliability.chains import campaign
from tests.reliability.common import STATE, Recorder, save
from tests.reliability.driver import Driver
from tests.reliability.mutations import MUTATIONS

from epg.training import artefact, checkpoint, verify
from epg.training.writer import CheckpointWriter, Snapshot

SIZES = {  # kills, mutations, power failures, sequences of events, parameters of the timed checkpoint
    "quick": (4, 30, 40, 20, 1_000_000),
    "nightly": (50, 1_000, 2_000, 600, 50_000_000),
    "release": (500, 10_000, 20_000, 5_000, 583_000_000),
}


@dataclass
class Figure:
    """One line of the table; `met` is None for a measurement without a bound."""

    goal: str
    what: str
    found: str
    met: bool | None
    seconds: float = 0.0


def kills(count: int, folder: Path) -> list[Figure]:
    """R1: half of the kills in each stage, half of them aimed at a write of a checkpoint."""
    driver, figures = Driver(), []
    try:
        for stage in ("pretraining", "diffusion"):
            found = campaign(driver, folder / stage, stage, count // 2, seed=1, aimed=0.5)
            figures.append(
                Figure(
                    "R1",
                    f"{stage}: kill -9 of a run of 120 steps that saves every 2",
                    f"{found.kills} kills, {found.inside_write} inside a write, {found.chains} chains, "
                    f"{len(found.broken)} broken, at most {found.largest_loss} logged steps lost",
                    not found.broken and found.inside_write >= 0.4 * found.kills and found.largest_loss <= 4,
                )
            )
        found = campaign(
            driver, folder / "naive", "diffusion", max(3, count // 8), seed=1, aimed=1.0, naive=True, kills_per_chain=1
        )
        result = f"{len(found.broken)} of {found.chains} chains broken"
        figures.append(Figure("R1", "control: naive writer", result, 2 * len(found.broken) >= found.chains))
    finally:
        driver.close()
    return figures


def power(count: int, folder: Path) -> list[Figure]:
    """R2: power failures at random moments of three saves, and with one kind of sync left out."""
    figures = []
    kinds: dict[str, Callable[[Any], bool]] = {"": lambda operation: False}
    kinds |= {kind: test_crash_points.sync_of(kind) for kind in ("file", "temporary folder", "parent folder")}
    start = folder / "start"
    start.mkdir(parents=True)
    test_crash_points.two(start / "checkpoints")
    real = shutil.copytree(start, folder / "real")
    operations = test_crash_points.record(real / "checkpoints", [6, 8, 10], Recorder())
    for kind, leave_out in kinds.items():
        kept = [operation for operation in operations if not leave_out(operation)]
        replays = count if not kind else max(100, count // 10)
        broken = test_crash_points.lost(start, kept, "checkpoints", replays, folder, seed=1)
        what = f"control: no sync of the {kind}" if kind else f"power failure during {len(operations)} operations"
        result = f"{len(broken)} of {replays} replays lost a checkpoint"
        figures.append(Figure("R2", what, result, bool(broken) if kind else not broken))
    return figures


def mutations(count: int, folder: Path) -> list[Figure]:
    """R4: damage of the newest checkpoint, looked for by loading and by `epg verify`; and without the hash."""
    for step in (2, 4):
        save(folder / "start" / "checkpoints", step, size=2000)
    chooser, detected, verified = random.Random(1), 0, 0
    for _ in range(count):
        run = shutil.copytree(folder / "start", folder / "run")
        path = run / "checkpoints" / "step-00000004"
        chooser.choice(MUTATIONS)(path, chooser)
        try:
            detected += (checkpoint.newest(run / "checkpoints") or checkpoint.read(path)).step == 2
        except artefact.ArtefactError:
            detected += 1
        verified += any(finding.problem for finding in verify.check(run))
        shutil.rmtree(run)
    missed, original = 0, checkpoint.fingerprint
    checkpoint.fingerprint = lambda file: json.loads((file.parent / "manifest.json").read_text())["files"][file.name]
    for _ in range(100):
        run = shutil.copytree(folder / "start", folder / "run")
        file = run / "checkpoints" / "step-00000004" / "model.safetensors"
        content = bytearray(file.read_bytes())
        content[chooser.randrange(len(content))] ^= 1 << chooser.randrange(8)
        file.write_bytes(content)
        try:
            checkpoint.read(file.parent).tensors("model")
            missed += 1
        except artefact.ArtefactError:
            pass
        shutil.rmtree(run)
    checkpoint.fingerprint = original
    found = f"{detected} of {count} by loading, {verified} by verify"
    return [
        Figure("R4", "mutations of the newest checkpoint", found, detected == verified == count),
        Figure("R4", "control: no hash", f"{missed} of 100 bit flips missed", missed >= 60),
    ]


def retention(count: int, folder: Path) -> list[Figure]:
    """R9: random sequences of save, failure, crash, prune, clock jump, restart, damage."""
    broken = 0
    for seed in range(count):
        try:
            test_retention.play(folder / str(seed), 10_000 + seed, test_retention.never_fewer_than_two)
        except AssertionError:
            broken += 1
        shutil.rmtree(folder / str(seed))
    what = f"sequences of {test_retention.LENGTH} events"
    return [Figure("R9", what, f"{broken} of {count} broke the rule", not broken)]


def speed(parameters: int, folder: Path) -> list[Figure]:
    """What a save costs training, and the background: weights, average and two moments in float32."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    names = ("model", "ema-0.9999", "optimizer")
    part = {f"block{i}.weight": torch.randn(parameters // 16, device=device) for i in range(16)}
    groups: dict[str, dict[str, torch.Tensor]] = {name: dict(part) for name in names}
    groups["optimizer"] |= {f"{name}.sq": tensor for name, tensor in part.items()}
    size = artefact.size_of(groups)
    snapshot, copies = Snapshot(), []
    for _ in range(3):
        started = time.perf_counter()
        snapshot.take(groups)
        copies.append(time.perf_counter() - started)
    del snapshot
    submits, writes = [], []
    with CheckpointWriter(folder, keep=2) as writer:
        for step in (1, 2, 3):
            started = time.perf_counter()
            writer.submit(step, groups, STATE)
            submits.append(time.perf_counter() - started)
            writer.finish()
            writes.append(time.perf_counter() - started)
    pause = min(submits[1:])
    extra = max(0.0, pause - min(copies[1:]))
    text = f"{size / 1e9:.2f} GB on {device}: pause {pause:.3f} s, of it copy {min(copies[1:]):.3f} s"
    return [
        Figure("speed", "pause of training per save", text, extra <= 1.0),
        Figure("speed", "write, sync, read back, export", f"{min(writes):.2f} s in the background", None),
    ]


PARTS = {"kills": kills, "mutations": mutations, "power": power, "retention": retention, "speed": speed}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tier", choices=SIZES, default="nightly")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--scratch", type=Path, help="folder to work in; a temporary one if not given")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    parts = dict(zip(PARTS, SIZES[options.tier], strict=True))
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        for name, count in parts.items():
            if options.only in (None, name):
                folder, started = Path(scratch) / name, time.perf_counter()
                folder.mkdir()
                new = PARTS[name](count, folder)
                new[-1].seconds = time.perf_counter() - started
                figures += new
    table = Table("goal", "what", "found", "met", "s", box=None)
    for figure in figures:
        met = {True: "yes", False: "NO", None: ""}[figure.met]
        table.add_row(figure.goal, figure.what, figure.found, met, f"{figure.seconds:.0f}" if figure.seconds else "")
    Console(width=160).print(table)
    if options.out:
        machine = {"torch": torch.__version__, "python": platform.python_version(), "machine": platform.machine()}
        content = {"tier": options.tier, **machine, "figures": [asdict(figure) for figure in figures]}
        options.out.write_text(json.dumps(content, indent=1) + "\n")
    return int(any(figure.met is False for figure in figures))


if __name__ == "__main__":
    sys.exit(main())
