"""The loop: resume = uninterrupted, micro-batches and processes change nothing, divergence stops it."""

import json
import math
import os
import signal
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from epg.checkpoint import checkpoint, saving
from epg.checkpoint.loading import load
from epg.config.objectives import Stage
from epg.config.recipe import merge, run_config
from epg.config.settings import RunConfig, parse
from epg.data.configured import open_training_data
from epg.data.loading.loader import BatchLoader
from epg.errors import DivergedError, InterruptedRunError, UserError
from epg.objectives.base import Losses
from epg.runs import prepare_run, train
from epg.sharding import whole_on_first
from epg.training.loop import Trainer
from epg.training.tracking import read_log
from tests import started
from tests.helpers import change_losses

STAGES: tuple[Stage, ...] = ("pretraining", "diffusion", "consistency")
TINY = {
    "model": {
        "encoder": {"depth": 2, "width": 16, "heads": 2},
        "decoder": {"width": 24, "heads": 2},
        "projector_hidden": 16,
        "projector_out": 8,
    },
    "training": {"batch_size": 16, "steps": 8, "log_every": 1, "preview_every": 0, "checkpoint_every": 3},
    "optimizer": {"warmup_steps": 2},
}


def tiny(stage: Stage, **changes: object) -> RunConfig:
    config = merge(run_config("digits", stage).model_dump(), TINY)
    if stage == "consistency":
        config = merge(config, {"objective": {"dropout": 0.5, "d": 3}})
    return parse(merge(config, changes), "test")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    train(tiny("pretraining", training={"steps": 2}), folder)
    return folder


def tensors(folder: Path) -> dict[str, Tensor]:
    found = checkpoint.find(folder)
    names = [file.stem for file in found.path.glob("*.safetensors")]
    return {f"{name}/{key}": value for name in names for key, value in found.tensors(name).items()}


def assert_identical(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different


class CrashError(Exception):
    """Ends a run as a crash would: nothing is saved."""


def crash_after(trainer: Trainer, steps: int) -> None:
    original = trainer.train_step

    def step(*args: object) -> object:
        if trainer.step == steps:
            raise CrashError
        return original(*args)  # type: ignore[arg-type]

    trainer.train_step = step  # type: ignore[method-assign, assignment]


@pytest.mark.parametrize("stage", STAGES)
def test_resume_equals_uninterrupted(stage: Stage, tmp_path: Path, encoder: Path) -> None:
    source = encoder if stage != "pretraining" else None
    train(tiny(stage), tmp_path / "straight", encoder=source)
    for crash in (4, 7):  # once before, once after the second checkpoint
        run = prepare_run(tiny(stage), tmp_path / "crashed", encoder=source)
        crash_after(run.trainer, crash)
        with pytest.raises(CrashError):
            run.trainer.run()
    assert checkpoint.find(tmp_path / "crashed").step == 6
    train(tiny(stage), tmp_path / "crashed", encoder=source)
    assert_identical(tensors(tmp_path / "straight"), tensors(tmp_path / "crashed"))
    straight, crashed = read_log(tmp_path / "straight"), read_log(tmp_path / "crashed")
    assert [line["step"] for line in crashed] == list(range(1, 9))
    assert [line["loss"] for line in crashed] == [line["loss"] for line in straight]


def test_a_resume_that_restored_nothing_would_show(tmp_path: Path) -> None:
    """The control of the test above: other seeds, other weights."""
    train(tiny("diffusion"), tmp_path / "a")
    train(tiny("diffusion", seed=1), tmp_path / "b")
    first, second = tensors(tmp_path / "a"), tensors(tmp_path / "b")
    assert not torch.equal(first["model/network.decoder.out.weight"], second["model/network.decoder.out.weight"])


def test_finished_run_trains_no_further(tmp_path: Path) -> None:
    train(tiny("diffusion"), tmp_path)
    before = tensors(tmp_path)
    train(tiny("diffusion"), tmp_path)
    assert_identical(before, tensors(tmp_path))


def test_damaged_newest_checkpoint_falls_back_and_still_ends_identically(tmp_path: Path) -> None:
    train(tiny("diffusion"), tmp_path / "straight")
    run = prepare_run(tiny("diffusion"), tmp_path / "damaged")
    crash_after(run.trainer, 7)
    with pytest.raises(CrashError):
        run.trainer.run()
    file = checkpoint.find(tmp_path / "damaged").path / "optimizer.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.warns(UserWarning, match=r"optimizer\.safetensors"):
        train(tiny("diffusion"), tmp_path / "damaged")
    assert_identical(tensors(tmp_path / "straight"), tensors(tmp_path / "damaged"))


@pytest.mark.parametrize("stage", ["diffusion", "consistency"])
def test_micro_batches_change_nothing_but_rounding(stage: Stage, tmp_path: Path) -> None:
    """Exact for stage 2 without the auxiliary loss; the negatives of NT-Xent are those of a micro-batch."""
    config = {"training": {"batch_size": 32, "steps": 4}}
    train(tiny(stage, **config), tmp_path / "whole")
    config["training"]["micro_batch"] = 16
    train(tiny(stage, **config), tmp_path / "cut")
    for whole, cut in zip(read_log(tmp_path / "whole"), read_log(tmp_path / "cut"), strict=True):
        assert cut["loss"] == pytest.approx(whole["loss"], rel=1e-5)
        assert cut["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_compiling_changes_nothing_but_rounding(stage: Stage, tmp_path: Path, encoder: Path) -> None:
    source = encoder if stage != "pretraining" else None
    for name, how in (("plain", {}), ("blocks", {"compile": True}), ("whole", {"cuda_graphs": True})):
        train(tiny(stage, training={"steps": 4, **how}), tmp_path / name, encoder=source)
    for name in ("blocks", "whole"):
        for plain, compiled in zip(read_log(tmp_path / "plain"), read_log(tmp_path / name), strict=True):
            assert compiled["loss"] == pytest.approx(plain["loss"], rel=1e-4)
            assert compiled["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-3)


def _train(stage: Stage, folder: str, encoder: str, training: dict[str, object]) -> None:
    source = Path(encoder) if stage != "pretraining" else None
    train(tiny(stage, training=training), Path(folder), encoder=source)


def _gather() -> None:
    dist.init_process_group("gloo")
    sharded = distribute_tensor(torch.arange(6.0).view(3, 2), init_device_mesh("cpu", (2,)), [Shard(0)])
    expected = torch.arange(6.0).view(3, 2) if dist.get_rank() == 0 else torch.empty(0)
    assert torch.equal(whole_on_first(sharded), expected)


def test_the_first_process_alone_holds_what_is_gathered_to_be_saved() -> None:
    started.call(_gather, processes=2)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_equal_one(stage: Stage, parallel: str, tmp_path: Path, encoder: Path) -> None:
    """Losses, gradients and, with a preview and a checkpoint on the way, what is written."""
    source = encoder if stage != "pretraining" else None
    training = {"batch_size": 32, "steps": 4, "power_ema": [0.1], "preview_every": 2, "parallel": parallel}
    train(tiny(stage, training=training), tmp_path / "one", encoder=source)
    started.call(_train, stage, tmp_path / "two", encoder, training, processes=2)
    one, two = tensors(tmp_path / "one"), tensors(tmp_path / "two")
    assert one.keys() == two.keys()
    assert all(one[name].shape == two[name].shape for name in one)
    assert (tmp_path / "two" / "previews" / "step-00000002.png").is_file()
    for one, two in zip(read_log(tmp_path / "one"), read_log(tmp_path / "two"), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)
    if stage != "pretraining":  # one process alone draws with what several have trained
        images = [load(tmp_path / name).sample([0, 1], seed=1).int() for name in ("one", "two")]
        assert (images[0] - images[1]).abs().max() <= 3


def poison(trainer: Trainer, steps: range) -> None:
    """Turns the loss of these steps into NaN."""

    def poisoned(step: int, losses: Losses) -> Losses:
        return {name: value * math.nan for name, value in losses.items()} if step in steps else losses

    change_losses(trainer.objective, poisoned)


def test_a_non_finite_step_is_skipped_and_counted(tmp_path: Path) -> None:
    run = prepare_run(tiny("diffusion"), tmp_path)
    poison(run.trainer, range(4, 6))
    with pytest.warns(UserWarning, match="step 4: not finite"):
        run.trainer.run()
    assert run.trainer.step == 8
    assert run.trainer.learner.skips.total == 2
    assert run.trainer.learner.skips.in_row == 0
    assert [line["skipped"] for line in read_log(tmp_path)] == [0, 0, 0, 0, 1, 2, 2, 2]
    assert all(bool(torch.isfinite(t).all()) for t in tensors(tmp_path).values())


def test_nothing_non_finite_is_written(tmp_path: Path) -> None:
    run = prepare_run(tiny("diffusion"), tmp_path)
    crash_after(run.trainer, 4)
    with pytest.raises(CrashError):
        run.trainer.run()
    next(iter(run.trainer.learner.ema.shadows["ema-0.99"].values())).fill_(math.nan)
    run.trainer.save()
    with pytest.raises(DivergedError, match=r"ema-0\.99 .* no checkpoint was written"):
        run.trainer.writer.finish()
    batch = next(iter(BatchLoader(run.dataset, batch_size=16, seed=0)))
    with pytest.raises(DivergedError, match=r"ema-0\.99 .* no checkpoint was written"):
        Trainer.train_step(run.trainer, batch)  # every process stops at the next step, none waits for the first
    assert checkpoint.find(tmp_path).step == 3


def test_non_finite_gradient_stops_before_the_update(tmp_path: Path) -> None:
    run = prepare_run(tiny("diffusion"), tmp_path)
    poison(run.trainer, range(4, 9))
    with pytest.warns(UserWarning, match="skipped, 2 of 3"), pytest.raises(DivergedError) as caught:
        run.trainer.run()
    for words in ("step 6: not finite", "3. step in a row", "denoising of samples [", "--optimizer.lr"):
        assert words in str(caught.value)
    assert checkpoint.find(tmp_path).step == 6  # of the steps before it, and of two skipped ones
    assert all(bool(torch.isfinite(t).all()) for t in run.trainer.objective.state_dict().values())
    assert all(bool(torch.isfinite(t).all()) for t in tensors(tmp_path).values())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_the_step_and_resumes_exactly(number: signal.Signals, tmp_path: Path) -> None:
    train(tiny("diffusion"), tmp_path / "straight")
    run = prepare_run(tiny("diffusion"), tmp_path / "stopped")
    original = run.trainer.train_step

    def step(*args: object) -> object:
        if run.trainer.step == 4:
            os.kill(os.getpid(), number)
        return original(*args)  # type: ignore[arg-type]

    run.trainer.train_step = step  # type: ignore[method-assign, assignment]
    with pytest.raises(InterruptedRunError, match="after step 5"):
        run.trainer.run()
    assert checkpoint.find(tmp_path / "stopped").step == 5
    train(tiny("diffusion"), tmp_path / "stopped")
    assert_identical(tensors(tmp_path / "straight"), tensors(tmp_path / "stopped"))


def test_other_images_are_refused(tmp_path: Path) -> None:
    train(tiny("diffusion"), tmp_path)
    file = checkpoint.find(tmp_path).path / "state.json"
    state = json.loads(file.read_text())
    state["data"] = "0" * 64
    found = checkpoint.find(tmp_path)
    saving.save(
        tmp_path / "checkpoints",
        9,
        {name: found.tensors(name) for name in ("model", "optimizer", "ema-0.99")},
        {k: v for k, v in state.items() if k not in ("format", "step")},
        keep=2,
    )
    with pytest.raises(UserError, match=r"data\.source: images 000000000000 -> images"):
        train(tiny("diffusion"), tmp_path)


def test_ema_follows_its_formula_in_the_loop(tmp_path: Path) -> None:
    """One step of a run that is too short for its average: ema = 2/11 w0 + 9/11 w1, see `epg.training.ema`."""
    run = prepare_run(tiny("diffusion", training={"steps": 1}), tmp_path)
    before = {name: p.detach().clone() for name, p in run.trainer.objective.network.named_parameters()}
    run.trainer.run()
    found = checkpoint.find(tmp_path)
    after, ema = found.tensors("model"), found.tensors("ema-0.99")
    for name, w0 in before.items():
        torch.testing.assert_close(ema[name], (2 * w0 + 9 * after[f"network.{name}"]) / 11)


def test_checkpoint_and_export_record_how_many_images_each_class_has(tmp_path: Path) -> None:
    config = tiny("diffusion", training={"steps": 1})
    run = train(config, tmp_path)
    counts = open_training_data(config.data).class_counts()
    assert len(counts) == 10
    assert sum(counts) == 1438
    assert len(set(counts)) > 1
    assert list(load(run.folder / "checkpoints" / "step-00000001").class_counts) == counts
    assert list(load(run.folder / "export").class_counts) == counts
