"""R9: retention never removes the last two checkpoints that verify; one writer per run folder."""

import errno
import os
import random
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from epg.checkpoint import checkpoint, saving
from epg.checkpoint.lock import locked
from epg.cli import main
from epg.errors import OutputError
from epg.storage import files
from tests.reliability.common import CrashAt, FailAt, crashes, hooked, save, valid
from tests.training.test_loop import tiny

LENGTH = 8  # events of a sequence


class World:
    """A folder of checkpoints and what happens to it."""

    def __init__(self, folder: Path, chooser: random.Random) -> None:
        self.folder, self.chooser, self.step = folder, chooser, 0
        self.keep = chooser.choice([2, 2, 3])
        self.keep_every = chooser.choice([0, 0, 4])

    def save(self) -> None:
        self.step += 1
        save(self.folder, self.step, self.keep, self.keep_every)

    def again(self) -> None:
        """The process starts again: it forgets what it has verified and continues from the newest that is valid."""
        checkpoint._intact.clear()
        self.step = max(valid(self.folder), default=0)

    def fail(self) -> None:
        first = self.chooser.randrange(30)
        last = first + self.chooser.choice([0, 10**9])
        try:
            with hooked(FailAt(errno.ENOSPC, first, last)):
                self.save()
        except OutputError:
            pass

    def crash(self) -> None:
        crashes(self.save, CrashAt(self.chooser.randrange(30), self.chooser.random() < 0.5))
        self.again()

    def prune(self) -> None:
        found = valid(self.folder)
        if found:
            newest = self.folder / f"step-{found[-1]:08d}"
            saving.prune(self.folder, newest, self.keep, self.keep_every)

    def clock(self) -> None:
        """The clock jumps: times of files tell nothing."""
        for file in self.folder.rglob("*"):
            moment = self.chooser.uniform(0, 2**31)
            os.utime(file, (moment, moment))

    def damage(self) -> None:
        paths = checkpoint.listing(self.folder)
        if len(valid(self.folder)) > 1:
            file = self.chooser.choice(paths) / "model.safetensors"
            if file.is_file():
                file.write_bytes(file.read_bytes()[:-1])

    def again_at_the_same_step(self) -> None:
        self.step = max(0, self.step - 1)
        self.save()


def play(folder: Path, seed: int, check: Callable[[World, str, set[int], set[int]], None]) -> None:
    world = World(folder, random.Random(seed))
    folder.mkdir()
    names = ["save"] * 3 + ["fail", "crash", "prune", "clock", "again", "damage", "again_at_the_same_step"]
    actions: list[Callable[[], Any]] = [getattr(world, name) for name in names]
    for _ in range(LENGTH):
        before, action = set(valid(folder)), world.chooser.choice(actions)
        action()
        if action != world.damage:
            check(world, action.__name__, before, set(valid(folder)))


def never_fewer_than_two(world: World, action: str, before: set[int], after: set[int]) -> None:
    assert len(after) >= min(2, len(before)), (action, before, after)
    assert max(after, default=0) >= max(before, default=0), (action, before, after)
    kept = {step for step in before if world.keep_every and step % world.keep_every == 0}
    assert kept <= after, (action, before, after)
    if action == "save":
        assert world.step in after
        assert len(after) <= world.keep + len({s for s in after if world.keep_every and s % world.keep_every == 0})


@pytest.mark.parametrize("sequences", [60, pytest.param(400, marks=pytest.mark.slow)])  # of 30, the control fails ten
def test_any_sequence_of_events(scratch: Path, sequences: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for seed in range(sequences):
            play(scratch / str(seed), seed, never_fewer_than_two)


def test_control_prune_before_save(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A retention that makes room first: caught in some sequence."""
    careful = saving.save

    def eager(folder: Path, *args: Any, **more: Any) -> Path:
        paths = checkpoint.listing(folder)
        for path in paths[:-1]:
            files.discard(path)
        return careful(folder, *args, **more)

    monkeypatch.setattr(saving, "save", eager)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        broken = 0
        for seed in range(30):
            try:
                play(scratch / str(seed), seed, never_fewer_than_two)
            except (AssertionError, OSError):
                broken += 1
    assert broken > 10


def test_damaged_ones_do_not_count(scratch: Path) -> None:
    for step in (1, 2, 3):
        save(scratch, step, keep=3)
    for step in (2, 3):
        (scratch / f"step-{step:08d}" / "model.safetensors").write_bytes(b"")
    checkpoint._intact.clear()
    save(scratch, 4)
    assert valid(scratch) == [1, 4]
    save(scratch, 5)
    assert [checkpoint.step_of(p) for p in checkpoint.listing(scratch)] == [4, 5]


def test_keeping_one_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(tiny("diffusion").to_yaml())
    command = ["finetune", str(config), "--from-scratch", "--out", str(tmp_path / "run"), "--training.keep", "1"]
    assert main(command) == 2
    assert "--training.keep 1: must be at least 2" in capsys.readouterr().err


# One writer -----------------------------------------------------------------------------------------------------------

HOLDER = """
import os, sys, time
from pathlib import Path
from epg.checkpoint.lock import locked
with locked(Path(sys.argv[1])):
    if os.fork() == 0:  # as a data loader's worker
        time.sleep(60)
        os._exit(0)
    print("locked", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_and_a_dead_one_is_not_waited_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(tiny("diffusion", training={"steps": 1}).to_yaml())
    command = ["finetune", str(config), "--from-scratch", "--out", str(tmp_path / "run")]
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path / "run"], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        try:
            assert main(command) == 73
            assert f"process {other.pid} is writing to it" in capsys.readouterr().err
            os.kill(other.pid, signal.SIGKILL)  # its worker lives on
            other.wait()
            assert (tmp_path / "run" / "run.lock").read_text() == str(other.pid)
            with locked(tmp_path / "run"):
                assert (tmp_path / "run" / "run.lock").read_text() == str(os.getpid())
        finally:
            os.killpg(other.pid, signal.SIGKILL)
