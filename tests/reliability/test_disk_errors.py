"""R3: a full, read-only or failing disk leaves the checkpoint before, says what is wrong, and does not end the run."""

import errno
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from epg.checkpoint import checkpoint, writer
from epg.cli import main
from epg.errors import OutputError
from epg.runs import prepare_run
from epg.storage import files
from epg.storage.files import Operation
from tests.reliability.common import FailAt, Recorder, hooked, save, valid
from tests.training.test_loop import tiny

MESSAGE = r"step-00000006: cannot be written: \[errno {number}\] {text}\. It needs [\d,]+ bytes; [\d,]+ are free\."
ERRORS = [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS, errno.EACCES]


def message_of(number: int) -> str:
    return MESSAGE.format(number=number, text=re.escape(os.strerror(number)))


@pytest.mark.parametrize("number", ERRORS)
def test_an_error_at_every_operation(number: int, scratch: Path) -> None:
    start = scratch / "start"
    for step in (2, 4):
        save(start, step)
    recorder = Recorder()
    with hooked(recorder):
        save(shutil.copytree(start, scratch / "dry"), 6)
    published = next(i for i, o in enumerate(recorder.operations) if o.target and o.target.name == "step-00000006")
    for at in range(len(recorder.operations)):
        folder = shutil.copytree(start, scratch / str(at))
        with hooked(FailAt(number, at)), warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            if at <= published + 1:  # up to the sync of the parent folder
                with pytest.raises(OutputError, match=message_of(number)) as error:
                    save(folder, 6)
                assert error.value.exit_code == 74
            else:
                save(folder, 6)  # it is safe; only something old could not be removed
                assert any("could not be removed" in str(w.message) for w in said)
        assert {2, 4} <= set(valid(folder)) or valid(folder) == [4, 6]
        assert not list(folder.glob(".*.tmp"))
        save(folder, 8)
        assert valid(folder)[-1] == 8
        assert not list(folder.glob(".*"))


def test_a_disk_that_stays_read_only(scratch: Path) -> None:
    for step in (2, 4):
        save(scratch, step)
    for first in range(0, 20, 3):
        with hooked(FailAt(errno.EROFS, first, 10**9)), pytest.raises(OutputError, match=message_of(errno.EROFS)):
            save(scratch, 6)
        assert {2, 4} <= set(valid(scratch))
    save(scratch, 6)
    assert not list(scratch.glob(".*"))


def test_short_writes_are_completed(scratch: Path) -> None:
    def half(operation: Operation, action: Callable[[], Any]) -> Any:
        if operation.kind != "write" or operation.data is None or len(operation.data) < 2:
            return action()
        file = next(f for f in Path("/proc/self/fd").iterdir() if f.resolve() == operation.path)
        return os.write(int(file.name), operation.data[: len(operation.data) // 2])

    with hooked(half):
        save(scratch, 2)
    assert valid(scratch) == [2]


@pytest.mark.parametrize("kind", ["lost", "zeros"])
def test_a_disk_that_lies_is_found_out(kind: str, scratch: Path) -> None:
    """A write that says it is done and is not: the checkpoint reads back differently and is not used."""
    save(scratch, 2)

    def lie(operation: Operation, action: Callable[[], Any]) -> Any:
        if operation.kind != "write" or operation.path.name != "model.safetensors":
            return action()
        assert operation.data is not None
        if kind == "zeros":
            file = next(f for f in Path("/proc/self/fd").iterdir() if f.resolve() == operation.path)
            os.write(int(file.name), bytes(len(operation.data)))
        return len(operation.data)

    with hooked(lie), pytest.raises(OutputError, match=r"model\.safetensors: .*does not match the manifest"):
        save(scratch, 4)
    assert [path.name for path in scratch.iterdir()] == ["step-00000002"]


def test_a_full_disk_at_every_offset(tmp_path: Path) -> None:
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-rm", "true"], check=False, capture_output=True).returncode:
        pytest.skip("no user namespaces here; see test_a_file_size_limit")
    command = [
        unshare,
        "-rm",
        sys.executable,
        "-m",
        "tests.reliability.full_disk",
        str(tmp_path),
        "9",
    ]  # three in each file
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, check=False)
    assert done.returncode == 0, done.stderr
    training, *cases, naive = map(json.loads, done.stdout.splitlines())
    assert (training["end"], training["left"], training["after"]) == (8, 2, 8), training
    assert "No space left on device" in training["message"]
    assert len(cases) == 9
    for case in cases:
        assert re.match("OutputError: .*" + MESSAGE.format(number=28, text="No space left on device")
                        .replace("00000006", "00000004"), case["message"])  # fmt: skip
        assert case["left"] == [2]
        assert case["rests"] == []
        assert case["after"] == [2, 4]
    # The control: torch.save in place destroys what was there and does not say why.
    assert naive["left"] == []
    assert "space" not in naive["message"]


def test_a_file_size_limit(scratch: Path) -> None:
    save(scratch, 2, size=10_000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in range(0, 40_000, 4_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(OutputError, match=r"\[errno 27\] File too large"):
                save(scratch, 4, size=10_000)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert [path.name for path in scratch.iterdir()] == ["step-00000002"]
        assert valid(scratch) == [2]


# Training on such a disk ----------------------------------------------------------------------------------------------


@pytest.fixture
def no_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "FIRST_DELAY", 0.01)


@pytest.fixture
def full_disk() -> Iterator[dict[str, Any]]:
    """Every write of these files fails as long as `full` is true."""
    disk: dict[str, Any] = {"full": True, "attempts": 0}

    def hook(operation: Operation, action: Callable[[], Any]) -> Any:
        if operation.kind == "write" and disk["full"]:
            disk["attempts"] += 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return action()

    with hooked(hook):
        yield disk


def test_training_goes_on_and_saves_when_there_is_space_again(
    scratch: Path, full_disk: dict[str, Any], no_delay: None
) -> None:
    run = prepare_run(tiny("diffusion", training={"steps": 8, "checkpoint_every": 2}), scratch)
    original = run.trainer.train_step

    def step(*args: Any) -> Any:
        full_disk["full"] = run.trainer.step < 5
        return original(*args)

    run.trainer.train_step = step  # type: ignore[method-assign]
    with pytest.warns(UserWarning, match=r"step-00000002: cannot be written: \[errno 28\].*Training goes on"):
        run.trainer.run()
    assert [checkpoint.step_of(p) for p in checkpoint.listing(scratch / "checkpoints")] == [6, 8]
    assert checkpoint.find(scratch).step == 8


def test_it_is_tried_again_at_most_three_times(scratch: Path, full_disk: dict[str, Any], no_delay: None) -> None:
    run = prepare_run(tiny("diffusion", training={"steps": 2, "checkpoint_every": 2}), scratch)
    with pytest.raises(OutputError, match="No space left"):
        run.trainer.run()
    assert full_disk["attempts"] == 4


def test_a_run_that_ends_without_its_last_checkpoint_says_so(
    scratch: Path, full_disk: dict[str, Any], no_delay: None, capsys: pytest.CaptureFixture[str]
) -> None:
    config = scratch / "config.yaml"
    config.write_text(tiny("diffusion", training={"steps": 4, "checkpoint_every": 2}).to_yaml())
    with pytest.warns(UserWarning, match="Training goes on"):
        assert main(["finetune", str(config), "--from-scratch", "--out", str(scratch / "run")]) == 74
    assert re.search(r"error: .*step-00000004: cannot be written: \[errno 28\]", capsys.readouterr().err)


def test_hook_is_off(scratch: Path) -> None:
    assert files.hook is None
