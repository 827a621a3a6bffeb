"""Faults during a run: every process takes the same decision, a hang ends, fp16 scales itself."""

import contextlib
import math
import os
import select
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from epg.checkpoint import checkpoint
from epg.checkpoint.lock import locked
from epg.distributed import processes, rank
from epg.errors import DivergedError, InterruptedRunError
from epg.runs import prepare_run, train
from epg.training import stopping
from epg.training.faults import LossScale, explain_non_finite
from epg.training.stopping import ECHO, StopSignals
from epg.training.tracking import read_log
from epg.training.watchdog import STUCK_EXIT_CODE
from tests import started
from tests.helpers import random_batch
from tests.reliability import inside
from tests.training.test_loop import assert_identical, poison, tensors, tiny


def test_loss_scale_halves_on_overflow_and_doubles_after_good_steps() -> None:
    scale = LossScale(enabled=True, scale=8.0, growth_steps=3)
    assert scale.update(finite=False)  # explained by the scale: not a fault
    assert scale.scale == 4
    assert [scale.update(finite=True) or scale.scale for _ in range(4)] == [4, 4, 8, 8]
    scale.scale = 1.0
    assert not scale.update(finite=False)  # nothing left to lower: a fault
    assert scale.scale == 1
    assert LossScale(enabled=False).factor == 1


def test_unscaling_divides_the_gradients() -> None:
    parameter = nn.Parameter(torch.ones(3))
    parameter.grad = torch.full((3,), 6.0)
    LossScale(enabled=True, scale=2.0).unscale([parameter])
    assert parameter.grad.tolist() == [3, 3, 3]


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.05), ("fp16", 0.02)])
def test_half_precision_trains_like_full(precision: str, tolerance: float, tmp_path: Path) -> None:
    train(tiny("diffusion"), tmp_path / "fp32")
    run = prepare_run(tiny("diffusion", training={"precision": precision}), tmp_path / "half")
    run.trainer.learner.loss_scale.scale = 16.0  # eight steps are too few to come down from 2^16
    run.trainer.run()
    full, half = (read_log(tmp_path / name) for name in ("fp32", "half"))
    assert half[-1]["skipped"] == 0
    assert any(h["loss"] != f["loss"] for h, f in zip(half, full, strict=True))
    for h, f in zip(half, full, strict=True):
        assert h["loss"] == pytest.approx(f["loss"], rel=tolerance)


def test_fp16_overflow_lowers_the_scale_and_survives_a_resume(tmp_path: Path) -> None:
    """A scale that overflows at once: steps are lost until it fits, none is counted as a fault."""
    config = tiny("diffusion", training={"precision": "fp16", "steps": 20})
    run = prepare_run(config, tmp_path)
    run.trainer.learner.loss_scale.scale = 2.0**20
    run.trainer.run()
    assert run.trainer.learner.loss_scale.scale < 2.0**20
    assert run.trainer.learner.skips.total == 0
    again = prepare_run(config, tmp_path)
    again.trainer.restore()
    assert again.trainer.learner.loss_scale == run.trainer.learner.loss_scale


@pytest.mark.parametrize("stage", ["pretraining", "diffusion", "consistency"])
def test_recomputing_activations_changes_nothing(stage: str, tmp_path: Path) -> None:
    train(tiny(stage), tmp_path / "kept")  # type: ignore[arg-type]
    for name, how in (("all", {}), ("some", {"keep_products": True})):
        train(tiny(stage, training={"activation_checkpointing": True, **how}), tmp_path / name)  # type: ignore[arg-type]
        assert_identical(tensors(tmp_path / "kept"), tensors(tmp_path / name))


def test_kept_products_are_not_computed_again(tmp_path: Path) -> None:
    def flops(**how: bool) -> int:
        run = prepare_run(tiny("diffusion", training=how), tmp_path)
        objective = run.trainer.objective
        with FlopCounterMode(display=False) as counter:
            objective(objective.draw(random_batch(run.config), 0))["loss"].backward()
        return counter.get_total_flops()

    plain, some = flops(), flops(activation_checkpointing=True, keep_products=True)
    assert some == plain
    assert flops(activation_checkpointing=True) > 1.2 * plain


def test_a_broken_weight_is_named(tmp_path: Path) -> None:
    run = prepare_run(tiny("diffusion", training={"max_nonfinite": 1}), tmp_path)
    with torch.no_grad():
        run.trainer.objective.network.get_parameter("decoder.norm.weight")[3] = math.nan
    with pytest.raises(DivergedError, match=r"Cause: weight network\.decoder\.norm\.weight"):
        run.trainer.run()
    assert not (tmp_path / "checkpoints").exists()


def test_samples_of_a_bad_block_are_named(tmp_path: Path) -> None:
    """Two blocks of 16, of which one sees a label that makes the loss infinite."""
    run = prepare_run(tiny("diffusion", training={"batch_size": 32}, objective={"label_dropout": 0.0}), tmp_path)
    from epg.data.loading.loader import BatchLoader

    batches = next(iter(BatchLoader(run.dataset, batch_size=32, seed=0)))
    labels = batches[0].labels
    only_second = (set(labels[16:].tolist()) - set(labels[:16].tolist())).pop()
    embedding = run.trainer.objective.network.get_parameter("class_embedding.weight")
    original = run.trainer.objective.network.class_embedding.forward  # type: ignore[union-attr, operator]
    assert torch.isfinite(embedding).all()

    def poisoned(chosen: torch.Tensor) -> torch.Tensor:
        out = original(chosen)
        return torch.where((chosen == only_second)[:, None], math.inf, out)

    run.trainer.objective.network.class_embedding.forward = poisoned  # type: ignore[union-attr]
    found = explain_non_finite(run.trainer.objective, batches, 0, run.trainer.learner.autocast)
    assert f"denoising of samples {batches[0].indices[16:].tolist()}" in found
    assert str(batches[0].indices[:16].tolist()) not in found


def test_a_part_is_never_a_single_sample(tmp_path: Path) -> None:
    """An odd batch is drawn sample by sample, but BatchNorm needs two."""
    config = tiny("pretraining", training={"batch_size": 15, "max_nonfinite": 1})
    run = prepare_run(config, tmp_path)
    inside.Spoiler(run.trainer.objective, "network.projector.0", "nan", step=0)
    with pytest.raises(DivergedError, match="step 0: not finite"):
        run.trainer.run()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_cause_is_looked_for_in_the_precision_of_the_step(precision: str, tmp_path: Path) -> None:
    """A layer that overflows under autocast alone, and one that does not, are told apart."""
    run = prepare_run(tiny("diffusion", training={"precision": precision, "max_nonfinite": 1}), tmp_path)
    layer = run.trainer.objective.network.get_submodule("decoder.out")
    computed = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]

    def fragile(module: nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
        return output * (math.nan if output.dtype == computed else 1)

    layer.register_forward_hook(fragile)
    with pytest.raises(DivergedError, match=r"Cause: denoising of samples \["):
        run.trainer.run()


def test_a_gradient_that_alone_is_broken_is_named(tmp_path: Path) -> None:
    run = prepare_run(tiny("diffusion", training={"max_nonfinite": 1}), tmp_path)
    inside.Spoiler(run.trainer.objective, "network.decoder.blocks.1", "gradient", step=0)
    with pytest.raises(DivergedError, match=r"the gradient alone of network\..* and \d+ more; every"):
        run.trainer.run()


@pytest.mark.parametrize("stage", ["pretraining", "diffusion"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(("steps", "bad"), [(1, range(1)), (2, range(2)), (8, range(6, 8))])
def test_a_run_that_is_not_finite_to_its_end_is_no_success(
    stage: str, precision: str, steps: int, bad: range, tmp_path: Path
) -> None:
    config = tiny(stage, training={"steps": steps, "precision": precision})  # type: ignore[arg-type]
    run = prepare_run(config, tmp_path)
    run.trainer.learner.loss_scale.scale = 16.0
    poison(run.trainer, bad)
    expected = r"not one of|the last 2 of 8"
    with pytest.warns(UserWarning, match="not finite"), pytest.raises(DivergedError, match=expected):
        run.trainer.run()
    with pytest.raises(DivergedError, match=expected):  # neither is the same command again
        train(config, tmp_path)


def test_fp16_that_never_fitted_its_scale_is_no_success(tmp_path: Path) -> None:
    run = prepare_run(tiny("diffusion", training={"precision": "fp16", "steps": 3}), tmp_path)
    run.trainer.learner.loss_scale.scale = 2.0**30
    with pytest.raises(DivergedError, match=r"not one of 3 steps .*fp16 may need more steps"):
        run.trainer.run()


def _nan_on_one_rank(folder: str, parallel: str) -> None:
    config = tiny("diffusion", training={"batch_size": 32, "parallel": parallel})
    with processes(), locked(Path(folder)):
        run = prepare_run(config, Path(folder))
        if rank() == 1:
            poison(run.trainer, range(3, 5))
        run.trainer.run()
        (Path(folder) / f"skipped-{rank()}").write_text(str(run.trainer.learner.skips.total))


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_nan_on_one_process_skips_the_step_on_all(parallel: str, tmp_path: Path) -> None:
    started.call(_nan_on_one_rank, tmp_path, parallel, processes=2)
    assert [(tmp_path / f"skipped-{number}").read_text() for number in (0, 1)] == ["2", "2"]
    assert [line["skipped"] for line in read_log(tmp_path)] == [0, 0, 0, 1, 2, 2, 2, 2]
    assert all(bool(torch.isfinite(t).all()) for t in tensors(tmp_path).values())
    assert checkpoint.find(tmp_path).step == 8


def test_a_hanging_process_ends_itself_and_says_where(tmp_path: Path) -> None:
    code = (
        "import time; from epg.training.watchdog import Watchdog; dog = Watchdog(1.0)\n"
        "with dog.watching():\n"
        "    dog.beat(41)\n"
        "    def stuck(): time.sleep(60)\n"
        "    stuck()\n"
    )
    done = started.run("-c", code)
    assert done.returncode == STUCK_EXIT_CODE
    assert "rank 0 completed no step" in done.stderr
    assert "after step 41" in done.stderr
    assert "in stuck" in done.stderr


def test_a_run_with_steps_is_left_alone_by_the_watchdog() -> None:
    code = (
        "import time; from epg.training.watchdog import Watchdog; dog = Watchdog(2.5)\n"
        "with dog.watching():\n"
        "    for step in range(8): time.sleep(0.4); dog.beat(step)\n"
        "time.sleep(3); print('alive')\n"
    )
    done = started.run("-c", code)
    assert done.returncode == 0
    assert done.stdout == "alive\n"


def test_a_second_signal_acts_at_once() -> None:
    stop = StopSignals()
    with stop.caught():
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012
            os.kill(os.getpid(), signal.SIGINT)
            for _ in range(1000):  # until the interpreter has delivered it
                time.sleep(0.01)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_a_preempted_command_exits_75_and_resumes(number: signal.Signals, tmp_path: Path) -> None:
    """The real command, stopped from outside while it trains."""
    folder, log = tmp_path / "run", tmp_path / "log"
    command = ["-m", "epg.cli", "finetune", "digits", "--from-scratch", "--out", folder]
    settings = ["--training.steps", "100000", "--training.log-every", "1", "--training.batch-size", "16"]
    with log.open("w") as said:
        run = started.start(*command, *settings, stdout=said, stderr=said)
    while "diffusion 3/" not in log.read_text():
        assert run.running, log.read_text()
        time.sleep(0.05)
    run.signal(number)
    assert run.wait() == [75], log.read_text()
    assert number.name in log.read_text().splitlines()[-1]
    step = checkpoint.find(folder).step
    assert 3 <= step < 100000
    assert read_log(folder)[-1]["step"] == step


def test_a_terminal_that_goes_away_saves_the_step(tmp_path: Path) -> None:
    """Its own terminal, so the kernel tells it so; what it prints from then on cannot be written."""
    master, slave = os.openpty()
    run = tmp_path / "run"
    command = ["finetune", "digits", "--from-scratch", "--out", run, "--training.steps", "100000"]
    settings = ["--training.batch-size", "16", "--training.log-every", "1"]
    code = (
        "import fcntl, os, sys, termios; os.setsid(); fcntl.ioctl(1, termios.TIOCSCTTY, 0); os.dup2(1, 0)\n"
        "from epg.cli import entry; sys.exit(entry())"
    )
    with os.fdopen(slave, "w") as terminal:
        program = started.start("-c", code, *command, *settings, stdout=terminal, stderr=terminal)
    reader = threading.Thread(target=drain, args=(master, run / "log.jsonl"))
    reader.start()
    reader.join()
    os.close(master)
    assert program.wait() == [75]
    assert checkpoint.find(run).step >= 3


def drain(master: int, until: Path) -> None:
    """Reads what is printed on a terminal until there is a log of three steps."""
    while not until.exists() or len(until.read_text().splitlines()) < 3:
        if select.select([master], [], [], 0.2)[0]:
            os.read(master, 65536)


def test_a_second_sighup_ends_nothing_and_nohup_is_respected() -> None:
    stop = StopSignals()
    with stop.caught():
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.received == signal.SIGHUP
        os.kill(os.getpid(), signal.SIGHUP)  # first the terminal, then the shell
        os.kill(os.getpid(), signal.SIGTERM)  # torchrun, which had both
        time.sleep(0.1)
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012
            stop._hung_up -= ECHO
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(10)
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop.caught():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, previous)


@pytest.mark.parametrize("error", [ImportError("cannot import name"), InterruptedRunError("of the handler")])
def test_at_the_start_whatever_follows_a_signal_is_an_interruption(error: Exception) -> None:
    def interrupted_import() -> None:
        with StopSignals(starting=True).caught():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(10)
            except InterruptedRunError:
                raise error from None

    with pytest.raises(InterruptedRunError):
        interrupted_import()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_signal_at_the_start_that_somebody_swallowed_stops_the_first_step(tmp_path: Path) -> None:
    stop = StopSignals(starting=True)
    with pytest.raises(InterruptedRunError, match="after step 1"), stop.caught():  # noqa: PT012
        trainer = prepare_run(tiny("diffusion"), tmp_path).trainer
        with contextlib.suppress(Exception):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        trainer.run(stop)


@pytest.mark.parametrize(
    ("processes", "told", "expected"),
    [(2, True, InterruptedRunError), (2, False, RuntimeError), (1, True, RuntimeError)],
)
def test_losing_the_others_after_a_stop_signal_is_an_interruption(
    processes: int, told: bool, expected: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopping, "world_size", lambda: processes)

    def lose_the_others() -> None:
        with StopSignals().caught():
            if told:
                os.kill(os.getpid(), signal.SIGTERM)
            raise RuntimeError("Connection reset by peer")

    with pytest.raises(expected):
        lose_the_others()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
