"""Everything that can be wrong is said before anything runs, and names the flag and the cure."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from epg.checkpoint.handover import read_encoder
from epg.checkpoint.loading import load
from epg.checkpoint.lock import locked
from epg.cli import main
from epg.errors import ArtefactError, DataError, OutputError, RunLockedError, UserError
from epg.runs import build_objective, prepare_run, train
from epg.training.beginning import starts_of
from epg.training.resolving import best_precision
from tests.training.test_loop import tiny


def folder_of_images(folder: Path, classes: int = 2, each: int = 4) -> Path:
    rng = np.random.default_rng(0)
    for c in range(classes):
        (folder / f"class{c}").mkdir(parents=True)
        for i in range(each):
            Image.fromarray(rng.integers(0, 255, (12, 12, 3), dtype=np.uint8)).save(folder / f"class{c}" / f"{i}.png")
    return folder


def test_number_of_classes_comes_from_the_data(tmp_path: Path) -> None:
    data = {"source": str(folder_of_images(tmp_path / "images", classes=3))}
    run = prepare_run(tiny("diffusion", data=data), tmp_path / "run")
    assert run.config.model.num_classes == 3
    assert run.dataset.class_names == ("class0", "class1", "class2")


def test_a_flat_folder_trains_an_unconditional_model(tmp_path: Path) -> None:
    images = folder_of_images(tmp_path / "images", classes=1) / "class0"
    run = prepare_run(tiny("diffusion", data={"source": str(images)}), tmp_path / "run")
    assert run.config.model.num_classes == 0
    run.trainer.run()


def test_labels_out_of_range_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--model\.num-classes 3.*label 9.*--model\.num-classes 10"):
        prepare_run(tiny("diffusion", model={"num_classes": 3}), tmp_path)


def test_classes_without_labels_are_refused(tmp_path: Path) -> None:
    images = folder_of_images(tmp_path / "images", classes=1) / "class0"
    with pytest.raises(UserError, match=r"--model\.num-classes 2.*no labels"):
        prepare_run(tiny("diffusion", data={"source": str(images)}, model={"num_classes": 2}), tmp_path / "run")


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match="images"):
        prepare_run(tiny("diffusion", data={"source": str(tmp_path / "images")}), tmp_path / "run")


def test_a_corrupt_image_is_named(tmp_path: Path) -> None:
    images = folder_of_images(tmp_path / "images")
    broken = images / "class1" / "2.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(DataError, match=r"2\.png"):
        prepare_run(tiny("diffusion", data={"source": str(images)}), tmp_path / "run")


def test_an_impossible_configuration_lists_every_problem(tmp_path: Path) -> None:
    config = tiny(
        "diffusion", data={"image_size": 9}, training={"micro_batch": 7}, model={"encoder": {"width": 17, "heads": 2}}
    )
    with pytest.raises(UserError) as caught:
        prepare_run(config, tmp_path)
    for flag in ("--data.image-size 9", "--training.micro-batch 7", "--model.encoder.width 17"):
        assert flag in str(caught.value)


def test_an_encoder_of_another_architecture_is_refused(tmp_path: Path) -> None:
    train(tiny("pretraining", training={"steps": 1}), tmp_path / "encoder")
    other = tiny("diffusion", model={"encoder": {"depth": 3, "width": 16, "heads": 2}})
    with pytest.raises(ArtefactError, match=r"(?s)--encoder .*depth=2.*depth=3"):
        prepare_run(other, tmp_path / "run", encoder=tmp_path / "encoder")


def test_a_missing_encoder_is_no_training_from_scratch(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="does not exist"):
        prepare_run(tiny("diffusion"), tmp_path / "run", encoder=tmp_path / "nothing")


def test_a_generator_is_no_encoder(tmp_path: Path) -> None:
    train(tiny("diffusion", training={"steps": 1}), tmp_path / "generator")
    with pytest.raises(ArtefactError, match="a diffusion run; pass a pre-training run"):
        prepare_run(tiny("diffusion"), tmp_path / "run", encoder=tmp_path / "generator")


def test_the_encoder_is_handed_over_to_the_last_bit(tmp_path: Path) -> None:
    train(tiny("pretraining", training={"steps": 1}), tmp_path / "encoder")
    run = prepare_run(tiny("consistency"), tmp_path / "run", encoder=tmp_path / "encoder")
    state = run.trainer.objective.state_dict()
    weights = read_encoder(tmp_path / "encoder", run.config).tensors
    for name, tensor in weights.items():
        assert state[f"network.encoder.{name}"].equal(tensor)
        assert state[f"frozen_encoder.{name}"].equal(tensor)
    keys = json.loads((tmp_path / "run" / "handover.json").read_text())
    assert keys["loaded"] == list(weights)
    assert keys["missing"] == keys["unexpected"] == []
    assert "network.projector.0.weight" in keys["left_out"]
    scratch = prepare_run(tiny("diffusion"), tmp_path / "scratch").trainer.objective.state_dict()
    assert not scratch["network.encoder.position_embedding"].equal(weights["position_embedding"])


def test_a_run_goes_on_as_it_began(tmp_path: Path) -> None:
    """What a command says of another beginning is refused, or told; never believed."""
    short = {"steps": 1}
    for name, seed in (("encoder", 0), ("other", 1)):
        train(tiny("pretraining", seed=seed, training=short), tmp_path / name)
    scratch, tuned = tmp_path / "scratch", tmp_path / "tuned"
    train(tiny("diffusion", training=short), scratch)
    train(tiny("diffusion", training=short), tuned, encoder=tmp_path / "encoder")
    record = (tuned / "handover.json").read_text()
    refused = {
        "--encoder .*encoder: the run in .*scratch began from scratch": (scratch, {"encoder": tmp_path / "encoder"}),
        "--from .*tuned: the run in .*scratch began from scratch": (scratch, {"base": tuned}),
        "--from-scratch: the run in .*tuned began with the encoder": (tuned, {}),
        "--from .*scratch: the run in .*tuned began with the encoder": (tuned, {"base": scratch}),
    }
    for message, (folder, beginning) in refused.items():
        with pytest.raises(UserError, match=message):
            train(tiny("diffusion", training=short), folder, **beginning)
    with pytest.warns(UserWarning, match="other is not read: the run in .*tuned began with the encoder .*encoder"):
        train(tiny("diffusion", training=short), tuned, encoder=tmp_path / "other")
    train(tiny("diffusion", training=short), tuned, resume=tuned)
    train(tiny("diffusion", training=short), tmp_path / "copy", resume=tuned)
    for folder in (tuned, tmp_path / "copy"):
        assert (folder / "handover.json").read_text() == record


def test_an_exported_encoder_is_handed_over_too(tmp_path: Path) -> None:
    train(tiny("pretraining", training={"steps": 1}), tmp_path / "encoder")
    config = prepare_run(tiny("diffusion"), tmp_path / "run").config
    of_run = read_encoder(tmp_path / "encoder", config).tensors
    of_export = read_encoder(tmp_path / "encoder" / "export", config).tensors
    assert of_run.keys() == of_export.keys()
    assert all(of_run[name].equal(of_export[name]) for name in of_run)
    other = tiny("diffusion", noise={"shift": 2.0})
    with pytest.raises(ArtefactError, match=r"(?s)noise\.shift: 1\.0 in the encoder, 2\.0 here"):
        read_encoder(tmp_path / "encoder" / "export", other)


def test_changed_settings_are_listed_and_refused(tmp_path: Path) -> None:
    train(tiny("diffusion", training={"steps": 3}), tmp_path)
    changed = tiny("diffusion", training={"steps": 3, "batch_size": 32}, seed=7)
    with pytest.raises(UserError, match=r"(?s)seed: 0 -> 7.*training\.batch_size: 16 -> 32"):
        prepare_run(changed, tmp_path)
    harmless = tiny("diffusion", training={"steps": 3, "log_every": 2, "keep": 5})
    prepare_run(harmless, tmp_path)


def test_one_writer_per_folder(tmp_path: Path) -> None:
    holder = (
        "import sys, time; from pathlib import Path; from epg.checkpoint.lock import locked\n"
        f"with locked(Path({str(tmp_path)!r})): print('locked', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", holder], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(RunLockedError, match=str(other.pid)):
            with locked(tmp_path):
                pass
        other.kill()
        other.wait()
    with locked(tmp_path):  # the lock of a dead process is free
        pass


def test_a_run_that_did_not_begin_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "own").mkdir()
    config = tiny("diffusion", data={"source": str(tmp_path / "images")})
    for place in ("runs/small/diffusion", "own/run", "own"):
        with pytest.raises(UserError):
            train(config, tmp_path / place)
        assert not (tmp_path / "runs").exists()
        assert (tmp_path / "own").is_dir(), "was there before"
        assert not (tmp_path / "own" / "run").exists()


def test_an_unwritable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match=r"--out .*file"):
        train(tiny("diffusion"), tmp_path / "file" / "run")


def test_a_micro_batch_that_does_not_divide_the_batch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--training\.micro-batch 12: must divide --training.batch-size 32"):
        prepare_run(tiny("diffusion", training={"batch_size": 32, "micro_batch": 12}), tmp_path)


@pytest.mark.parametrize("objective", [{"delta": 30}, {"delta": 1000, "d": 1}, {"d": 1, "q": 8.0}, {}])
def test_no_consistency_run_comes_to_a_standstill(tmp_path: Path, objective: dict[str, object]) -> None:
    """Past the last stage that the precision resolves, t - r was 0, and with it the loss; past 1023 it overflowed."""
    base = {"auxiliary_weight": 0.0, "d": None, "dropout": 0.0}
    train(tiny("consistency", objective=base | objective, training={"steps": 60}), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert all(line["loss"] > 0 and line["grad_norm"] > 0 for line in lines if "loss" in line)
    assert max(line["stage"] for line in lines if "stage" in line) <= 23
    if not objective:
        assert [line["stage"] for line in lines if "stage" in line][-1] == 1 + 59 // (60 // 7)


def drawn_with(run: Path, out: Path, *flags: str) -> str:
    assert main(["sample", str(run), "--count", "2", "--steps", "2", "--out", str(out), *flags]) == 0
    return str(json.loads((out / "samples.json").read_text())["weights"])


def test_a_run_and_its_export_sample_with_the_same_weights(tmp_path: Path) -> None:
    """Of a run with power-function averages alone, the export had the first of them and the run the trained weights."""
    changes = {"ema": [], "power_ema": [0.1, 0.05], "steps": 6}
    train(tiny("diffusion", training=changes), tmp_path / "run")
    of_run = drawn_with(tmp_path / "run", tmp_path / "a")
    assert drawn_with(tmp_path / "run" / "export", tmp_path / "b") == of_run
    trained = drawn_with(tmp_path / "run", tmp_path / "c", "--ema", "0")
    assert trained != of_run
    export = tmp_path / "run" / "export"
    assert main(["sample", str(export), "--count", "2", "--ema", "0", "--out", str(tmp_path / "d")]) == 77


def test_a_run_much_shorter_than_its_average_draws_what_it_learnt(tmp_path: Path) -> None:
    """The average of decay 0.9996 over 40 steps was the random start, and drew grey."""
    train(tiny("diffusion", training={"ema": [0.9996], "steps": 40, "log_every": 40}), tmp_path / "run")
    average, trained = (load(tmp_path / "run", ema=ema).denoiser.network for ema in (None, 0))
    start = build_objective(prepare_run(tiny("diffusion"), tmp_path / "other").config).network
    distance = {}
    for name, other in (("trained", trained), ("start", start)):
        pairs = zip(average.state_dict().values(), other.state_dict().values(), strict=True)
        distance[name] = sum(float((a - b).square().sum()) for a, b in pairs)
    assert distance["trained"] < distance["start"] / 4


# Precision ------------------------------------------------------------------------------------------------------------


def test_auto_precision_is_decided_and_recorded_at_the_start(tmp_path: Path) -> None:
    run = prepare_run(tiny("diffusion", training={"precision": "auto"}), tmp_path)
    assert run.config.training.precision == best_precision(torch.device("cpu"))
    assert f"precision: {run.config.training.precision}" in (tmp_path / "config.yaml").read_text()
    if "avx512_bf16" in Path("/proc/cpuinfo").read_text():
        assert run.config.training.precision == "bf16"


@pytest.mark.parametrize("began", ["fp32", "bf16"])
def test_auto_precision_of_a_run_that_goes_on_is_what_it_began_with(began: str, tmp_path: Path) -> None:
    """On a device that would choose otherwise, too: one of the two is not this one's choice."""
    train(tiny("diffusion", training={"steps": 3, "precision": began}), tmp_path)
    run = prepare_run(tiny("diffusion", training={"steps": 3, "precision": "auto"}), tmp_path)
    assert run.config.training.precision == began
    assert run.trainer.start is not None
    assert run.trainer.start.history == []


def test_every_start_is_recorded_with_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for words in (["/usr/bin/epg", "pretrain", "a name"], ["epg", "--out", str(Path.home() / "x")]):
        monkeypatch.setattr(sys, "argv", words)
        train(tiny("pretraining", training={"steps": 2, "checkpoint_every": 2}), tmp_path)
    first, second = starts_of(tmp_path)
    assert (first["step"], first["command"]) == (0, "epg pretrain 'a name'")
    assert (second["step"], second["command"]) == (2, "epg --out ~/x")
    assert first["environment"]["packages"]["torch"] == torch.__version__.partition("+")[0]
    (tmp_path / "starts.jsonl").write_text("[1\n")
    assert starts_of(tmp_path) == []
