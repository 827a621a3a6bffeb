"""R2: a crash before or after every file operation, and power failures, leave a valid checkpoint."""

import copy
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from epg.checkpoint import checkpoint
from epg.storage import files
from epg.storage.files import Operation
from tests.reliability.common import CrashAt, Recorder, crashes, hooked, save, valid
from tests.reliability.powerloss import Disk

REPLAYS = 200


def fresh(folder: Path) -> None:
    pass


def two(folder: Path) -> None:
    for step in (2, 4):
        save(folder, step)


def rests(folder: Path) -> None:
    """What kills have left: an unfinished checkpoint, one half removed, one whose place was about to be taken."""
    two(folder)
    shutil.copytree(folder / "step-00000002", folder / ".step-00000006.epg-0123abcd.tmp")
    shutil.copytree(folder / "step-00000002", folder / ".step-00000000.epg-0123abcd.tmp")
    (folder / ".step-00000006.epg-0123abcd.tmp" / "manifest.json").unlink()
    shutil.copytree(folder / "step-00000004", folder / "step-00000004.replaced")


SCENARIOS: list[tuple[Callable[[Path], None], int]] = [(fresh, 2), (two, 6), (two, 4), (two, 2), (rests, 6)]


def record(folder: Path, steps: list[int], recorder: Recorder) -> list[Operation]:
    with hooked(recorder):
        for step in steps:
            save(folder, step)
    return recorder.operations


@pytest.mark.parametrize(("prepare", "step"), SCENARIOS)
def test_every_crash_point(prepare: Callable[[Path], None], step: int, scratch: Path) -> None:
    start = scratch / "start"
    start.mkdir()
    prepare(start / "checkpoints")
    before = valid(start / "checkpoints")
    count = len(record(shutil.copytree(start, scratch / "dry") / "checkpoints", [step], Recorder()))
    assert count > 10
    for at in range(count):
        for after in (False, True):
            folder = shutil.copytree(start, scratch / f"{at}-{after}") / "checkpoints"
            assert crashes(lambda folder=folder: save(folder, step), CrashAt(at, after, hard=prepare is fresh))
            left = valid(folder)
            assert len(left) >= min(2, len(before)), (at, after)
            assert max(left, default=0) >= max(before, default=0), (at, after)
            save(folder, step)  # the same command again
            assert step in valid(folder)
            assert not list(folder.glob(".*")), (at, after)


def lost(
    start: Path, operations: list[Operation], folder: str, replays: int, scratch: Path, seed: int = 0
) -> list[str]:
    """What power failures at random moments of these operations break."""
    chooser, broken = random.Random(seed), []
    before = valid(start / folder)
    root = operations[0].path
    while root.name != folder:
        root = root.parent
    published = [  # (operations until a checkpoint is safe, its step)
        (i + 1, checkpoint.step_of(last.target))
        for i, o in enumerate(operations)
        if o.kind == "fsync" and o.path == root
        for last in [next(p for p in reversed(operations[:i]) if p.kind in ("rename", "mkdir"))]
        if last.target is not None and checkpoint.step_of(last.target) >= 0
    ]
    for replay in range(replays):
        at = chooser.randint(0, len(operations))
        disk = Disk(start)
        for operation in operations[:at]:
            moved = copy.copy(operation)
            object.__setattr__(moved, "path", start / operation.path.relative_to(root.parent))
            if operation.target is not None:
                object.__setattr__(moved, "target", start / operation.target.relative_to(root.parent))
            disk.apply(moved)
        target = scratch / "after-loss"
        shutil.rmtree(target, ignore_errors=True)
        disk.write_after_loss(target, chooser)
        left = valid(target / folder) if (target / folder).exists() else []
        safe = max([*before, *(step for i, step in published if i <= at)], default=0)
        if len(left) < min(2, len(before)) or max(left, default=0) < safe:
            broken.append(f"replay {replay}, after operation {at}: left {left}, safe was {safe}")
    return broken


def replayed(
    scratch: Path, prepare: Callable[[Path], None], steps: list[int], leave_out: Callable[[Operation], bool]
) -> list[str]:
    start = scratch / "start"
    start.mkdir()
    prepare(start / "checkpoints")
    real = shutil.copytree(start, scratch / "real")
    operations = record(real / "checkpoints", steps, Recorder())
    return lost(start, [o for o in operations if not leave_out(o)], "checkpoints", REPLAYS // 2, scratch)


@pytest.mark.parametrize(("prepare", "steps"), [(fresh, [2, 4]), (two, [6, 8, 10]), (two, [4, 4]), (rests, [6])])
def test_power_failure(prepare: Callable[[Path], None], steps: list[int], scratch: Path) -> None:
    assert replayed(scratch, prepare, steps, lambda o: False) == []


def sync_of(kind: str) -> Callable[[Operation], bool]:
    def is_one(operation: Operation) -> bool:
        name = operation.path.name
        names = {"file": name.endswith((".safetensors", ".json")), "temporary folder": name.endswith(".tmp")}
        return operation.kind == "fsync" and names.get(kind, name == "checkpoints")

    return is_one


@pytest.mark.parametrize("kind", ["file", "temporary folder", "parent folder"])
def test_control_a_missing_sync_loses_checkpoints(kind: str, scratch: Path) -> None:
    broken = replayed(scratch, two, [6, 8, 10], sync_of(kind))
    assert broken, f"without the sync of the {kind} nothing was lost"


def test_control_retention_before_the_save_loses_checkpoints(scratch: Path) -> None:
    """The same operations, but an old checkpoint is removed before the new one is written."""
    start, broken = scratch / "start", 0
    start.mkdir()
    two(start / "checkpoints")
    for at in range(20):
        folder = shutil.copytree(start, scratch / str(at)) / "checkpoints"

        def wrong_order(folder: Path = folder) -> None:
            files.discard(checkpoint.listing(folder)[0])
            save(folder, 6)

        crashes(wrong_order, CrashAt(at, after=True))
        broken += len(valid(folder)) < 2
    assert broken > 5


def test_order_of_operations(scratch: Path) -> None:
    """Every file is synced at its final size before the rename, the folder after it, and only then is one removed."""
    folder = scratch / "checkpoints"
    two(folder)
    operations = record(folder, [6], Recorder())
    renamed = next(i for i, o in enumerate(operations) if o.target is not None and o.target.name == "step-00000006")
    written = {o.path for o in operations if o.kind == "open"}
    assert {p.name for p in written} == {f.name for f in (folder / "step-00000006").iterdir()}
    for path in written:
        own = [i for i, o in enumerate(operations) if o.path == path]
        assert operations[own[-1]].kind == "fsync"
        assert own[-1] < renamed
        size = sum(len(o.data) for o in operations if o.path == path and o.data is not None)
        assert size == (folder / "step-00000006" / path.name).stat().st_size
    opened = [o.path.name for o in operations if o.kind == "open"]
    assert opened[-1] == "manifest.json"
    syncs = [i for i, o in enumerate(operations) if o.kind == "fsync" and o.path in (folder, operations[renamed].path)]
    assert len(syncs) == 2
    assert syncs[0] < renamed < syncs[1]
    removals = [i for i, o in enumerate(operations) if o.kind in ("unlink", "rmdir")]
    assert removals
    assert min(removals) > syncs[1]
