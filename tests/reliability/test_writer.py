"""Checkpoints in the background: training does not wait, what is written is what was, errors surface in time."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from epg.checkpoint import checkpoint, export, verify
from epg.checkpoint.loading import load
from epg.checkpoint.writer import CheckpointWriter
from epg.cli import main
from epg.errors import ArtefactError, InterruptedRunError, OutputError
from epg.runs import train
from epg.storage.files import Operation
from tests.reliability.common import STATE, FailAt, hooked, tensors_of, valid
from tests.training.test_loop import tiny


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Writes of tensors wait until it is set."""
    event = threading.Event()

    def hook(operation: Operation, action: Callable[[], Any]) -> Any:
        if operation.kind == "write":
            assert event.wait(20)
        return action()

    with hooked(hook):
        yield event
        event.set()


def test_the_copy_is_of_the_moment_and_training_goes_on(scratch: Path, gate: threading.Event) -> None:
    groups = tensors_of(2)
    with CheckpointWriter(scratch, keep=2) as writer:
        writer.submit(2, groups, STATE)
        for group in groups.values():  # training goes on while nothing is on the disk yet
            for tensor in group.values():
                tensor += 1
        assert valid(scratch / "checkpoints") == []
        gate.set()
    assert valid(scratch / "checkpoints") == [2]


def test_at_most_one_write_is_under_way(scratch: Path, gate: threading.Event) -> None:
    with CheckpointWriter(scratch, keep=2) as writer:
        writer.submit(2, tensors_of(2), STATE)
        threading.Timer(0.2, gate.set).start()
        writer.submit(4, tensors_of(4), STATE)
        assert gate.is_set()  # it has waited for the one before
        assert 2 in valid(scratch / "checkpoints")
    assert valid(scratch / "checkpoints") == [2, 4]


def test_a_newer_checkpoint_does_not_wait_for_retries(scratch: Path) -> None:
    with CheckpointWriter(scratch, keep=2, first_delay=500) as writer:
        with hooked(FailAt(28, 0, 10**9)):
            writer.submit(2, tensors_of(2), STATE)
            while writer._failure is None:
                time.sleep(0.01)
            with pytest.warns(UserWarning, match="Training goes on"):
                writer.poll()
        writer.poll()  # says it once
        started = time.monotonic()
        writer.submit(4, tensors_of(4), STATE)
        writer.finish()
        assert time.monotonic() - started < 400
    assert valid(scratch / "checkpoints") == [4]


@pytest.mark.parametrize("error", [None, InterruptedRunError("stopped")])
def test_the_end_of_a_run_reports_a_failed_checkpoint(error: Exception | None, scratch: Path) -> None:
    def run() -> None:
        with CheckpointWriter(scratch, keep=2, first_delay=0.01) as writer, hooked(FailAt(28, 0, 10**9)):
            writer.submit(2, tensors_of(2), STATE)
            while writer._thread is not None and writer._thread.is_alive():
                time.sleep(0.01)
            if error is not None:
                raise error

    with pytest.raises(OutputError, match="No space left"):
        run()


def test_a_failure_does_not_hide_another_error(scratch: Path) -> None:
    writer = CheckpointWriter(scratch, keep=2, first_delay=0.01)

    def run() -> None:
        with writer, hooked(FailAt(28, 0, 10**9)):
            writer.submit(2, tensors_of(2), STATE)
            writer._join()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run()


def test_a_mistake_of_ours_is_raised_in_training(scratch: Path) -> None:
    with CheckpointWriter(scratch, keep=2) as writer:
        writer.submit(2, {"model": {"x": torch.zeros(1, dtype=torch.complex64)}}, STATE)
        writer._join()
        assert writer.failed
        writer.submit(4, tensors_of(4), STATE)  # which does not hide it
        with pytest.raises(ValueError, match="complex64 cannot be saved"):
            writer.finish()
        writer._failure = None


def test_a_folder_that_goes_away_during_a_write_is_said_though_the_write_succeeds(scratch: Path) -> None:
    """The write is under way meanwhile; when it has been noticed, the folder comes back."""
    begun, noticed = threading.Event(), threading.Event()

    def hook(operation: Operation, action: Callable[[], Any]) -> Any:
        if operation.kind == "write":
            begun.set()
            assert noticed.wait(20)
        return action()

    writer, elsewhere = CheckpointWriter(scratch, keep=2), scratch.with_name(f"{scratch.name}-elsewhere")
    with hooked(hook):
        writer.submit(2, tensors_of(2), STATE)
        assert begun.wait(20)
        scratch.rename(elsewhere)
        assert writer.failed == 74
        elsewhere.rename(scratch)
        noticed.set()
        with pytest.raises(OutputError, match="was renamed or removed"):
            writer.finish()
    assert valid(scratch / "checkpoints") == [2]


# Export and verification ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    train(tiny("diffusion", training={"steps": 4, "checkpoint_every": 2, "ema": [0.99, 0.9]}), folder)
    return folder


def test_the_export_holds_the_averaged_weights(run: Path) -> None:
    found, exported = checkpoint.find(run), export.read(run / "export")
    assert (exported.step, exported.kind) == (4, "ema-0.99")
    ema, weights = found.tensors("ema-0.99"), exported.tensors()
    assert weights.keys() == ema.keys()
    assert all(torch.equal(weights[k], ema[k]) for k in ema)
    assert {file.name for file in (run / "export").iterdir()} == {"model.safetensors", "config.json"}


def test_sampling_from_the_export(run: Path, tmp_path: Path) -> None:
    reference = load(run).denoiser.network.state_dict()
    (tmp_path / "copy").mkdir()
    (run / "export").rename(tmp_path / "copy" / "export")  # all that somebody passes on
    try:
        for path in (tmp_path / "copy", tmp_path / "copy" / "export"):
            generator = load(path)
            assert generator.class_names == tuple(map(str, range(10)))
            weights = generator.denoiser.network.state_dict()
            assert all(torch.equal(weights[k], reference[k]) for k in reference)
        with pytest.raises(ArtefactError, match=r"no EMA with decay 0\.5; it has ema-0\.99"):
            load(tmp_path / "copy", ema=0.5)
    finally:
        (tmp_path / "copy" / "export").rename(run / "export")


def test_the_export_of_an_encoder_cannot_sample(tmp_path: Path) -> None:
    train(tiny("pretraining", training={"steps": 1}), tmp_path)
    exported = export.read(tmp_path / "export")
    assert exported.kind == "model"
    assert any(name.startswith("encoder.") for name in exported.tensors())
    with pytest.raises(ArtefactError, match="a pre-trained encoder cannot sample"):
        load(tmp_path / "export")


def test_verify_lists_everything(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    findings = verify.check(run)
    assert [(f.path.name, f.step, f.problem) for f in findings] == [
        ("step-00000002", 2, ""),
        ("step-00000004", 4, ""),
        ("export", 4, ""),
    ]
    assert all(f.size > 10_000 for f in findings)
    assert main(["verify", str(run)]) == 0
    assert capsys.readouterr().out.count("intact") == 3
    assert main(["verify", str(run / "checkpoints" / "step-00000002")]) == 0
    assert main(["verify", str(run / "export")]) == 0


def test_verify_of_nothing(tmp_path: Path) -> None:
    assert main(["verify", str(tmp_path)]) == 77


@pytest.mark.parametrize("damage", ["flip", "config", "missing"])
def test_a_damaged_export(damage: str, tmp_path: Path) -> None:
    export.write(tmp_path / "export", 2, tensors_of(2), STATE)
    file = tmp_path / "export" / "model.safetensors"
    if damage == "flip":
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    elif damage == "config":
        (tmp_path / "export" / "config.json").write_text("{}")
    else:
        file.unlink()
    with pytest.raises(ArtefactError, match=r"model\.safetensors|config\.json"):
        export.read(tmp_path / "export")
    assert main(["verify", str(tmp_path)]) == 77


def test_a_failed_export_leaves_the_one_before(scratch: Path) -> None:
    export.write(scratch / "export", 2, tensors_of(2), STATE)
    for at in range(8):
        with hooked(FailAt(28, at)), pytest.raises(OutputError, match="export: cannot be written"):
            export.write(scratch / "export", 4, tensors_of(4), STATE)
        assert export.read(scratch / "export").step == 2
        assert [p.name for p in scratch.iterdir()] == ["export"]
