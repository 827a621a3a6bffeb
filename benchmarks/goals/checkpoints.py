"""What is left of checkpoints: after kills (R1), power failures (R2), damage (R4) and any other history (R9)."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.reliability import test_crash_points, test_retention
from tests.reliability.chains import campaign
from tests.reliability.common import Recorder, save
from tests.reliability.driver import Driver
from tests.reliability.mutations import MUTATIONS

from epg.checkpoint import checkpoint, verify
from epg.storage import artefact
from goals.figure import Figure


def kills(count: int, folder: Path) -> list[Figure]:
    """R1: half of the kills in each stage, half of them aimed at a write of a checkpoint."""
    figures = []
    driver = Driver()
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
