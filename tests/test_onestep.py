"""One step by moments, from a generator: `epg finetune --stage onestep --from`."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from epg.checkpoint.best import best_of
from epg.checkpoint.loading import load
from epg.cli import main
from epg.evaluation import receipt
from epg.evaluation.extractors import indomain
from epg.evaluation.receipt import default_metric
from epg.networks.build import build_encoder
from epg.objectives.onestep import OneStep
from epg.training.tracking import read_log
from tests.helpers import random_batch, tiny_config, tiny_epg

RECIPE = """
base: digits
model:
  encoder: {depth: 2, width: 16, heads: 2}
  decoder: {width: 24, heads: 2}
  projector_hidden: 16
pretraining:
  training: {batch_size: 16, steps: 2, preview_every: 0, trackers: []}
diffusion:
  optimizer: {lr: 3.0e-3, warmup_steps: 2}
  training: {batch_size: 32, steps: 40, ema: [0.5], preview_every: 0, log_every: 10, trackers: []}
onestep:
  objective: {levels: [0.2, 1.0], pixels: 4, decay: 0.9, covariance: class, recognition_weight: 0.5}
  optimizer: {lr: 1.0e-3, warmup_steps: 2, schedule: constant}
  training: {batch_size: 30, steps: 12, ema: [0.5], preview_every: 0, log_every: 1, checkpoint_every: 6, trackers: []}
  evaluation: {every: 6, count: 40, features: [random]}
"""


def finetune(folder: Path, out: str, *more: str) -> int:
    stage = ["finetune", str(folder / "mine.yaml"), "--stage", "onestep"]
    return main([*stage, "--out", str(folder / out), *more])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an encoder, a diffusion model that began with it, and one step from that."""
    folder = tmp_path_factory.mktemp("onestep")
    (folder / "mine.yaml").write_text(RECIPE)
    recipe, encoder = str(folder / "mine.yaml"), str(folder / "encoder")
    assert main(["pretrain", recipe, "--out", encoder]) == 0
    assert main(["finetune", recipe, "--encoder", encoder, "--out", str(folder / "diffusion")]) == 0
    assert finetune(folder, "onestep", "--from", str(folder / "diffusion")) == 0
    return folder


def test_it_starts_from_the_average_of_the_generator_and_with_its_encoder(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "first"
    arguments = ["--stage", "onestep", "--from", str(place / "diffusion"), "--training.steps", "1"]
    arguments += ["--optimizer.lr", "1e-12", "--training.ema", "0"]
    assert main(["finetune", str(place / "mine.yaml"), *arguments, "--out", str(out)]) == 0
    base, begun = load(place / "diffusion"), load(out)
    for name, value in base.denoiser.network.state_dict().items():
        assert torch.allclose(value, begun.denoiser.network.state_dict()[name], atol=1e-9), name
    (checkpoint,) = (out / "checkpoints").iterdir()
    stored = load_file(checkpoint / "model.safetensors")
    (encoder,) = (place / "encoder" / "checkpoints").glob("step-*2")
    original = load_file(encoder / "model.safetensors")
    frozen = {name: value for name, value in stored.items() if name.startswith("frozen_encoder.")}
    assert frozen
    for name, value in frozen.items():
        assert torch.equal(value, original[name.replace("frozen_encoder", "network.encoder")]), name
    record = json.loads((out / "handover.json").read_text())
    assert record["generator"]["source"].startswith(str(place / "diffusion"))
    assert record["source"].startswith(str(place / "encoder"))


def test_distances_fall(place: Path) -> None:
    lines = read_log(place / "onestep")
    assert [line["step"] for line in lines] == list(range(1, 13))
    names = ["moments/0.2", "moments/1", "moments/pixels"]
    assert all(line["recognition"] > 0 for line in lines)
    for line in lines:
        assert line["moments"] == pytest.approx(sum(line[name] for name in names), rel=1e-5)
    assert lines[-1]["moments"] < lines[0]["moments"]


def test_resumed_is_uninterrupted(place: Path) -> None:
    begun = ["--from", str(place / "diffusion")]
    assert finetune(place, "stopped", *begun, "--training.steps", "6") == 0
    assert finetune(place, "stopped", *begun, "--training.steps", "12", "--override", "training.steps") == 0
    files = [place / run / "checkpoints" / "step-00000012" / "model.safetensors" for run in ("onestep", "stopped")]
    straight, resumed = (load_file(file) for file in files)
    assert any("moments" in name for name in straight)
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)


@pytest.mark.parametrize("rank", [0, 1])
def test_one_of_several_processes_says_what_came_of_it(
    place: Path, rank: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also when they have parted: each knows its number from the launcher."""
    monkeypatch.setenv("RANK", str(rank))
    assert finetune(place, "onestep", "--from", str(place / "diffusion")) == 0
    assert capsys.readouterr().out.count("Next: epg sample") == (rank == 0)


def test_another_number_of_passes_is_refused_by_name(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Moments are taken of a pass."""
    assert finetune(place, "onestep", "--training.micro-batch", "15", "--from", str(place / "diffusion")) == 2
    assert "training.micro_batch: a step in 1 passes -> a step in 2 passes" in capsys.readouterr().err


# What judges it -------------------------------------------------------------------------------------------------------


def test_it_is_judged_while_it_trains_by_what_it_was_not_trained_in(place: Path) -> None:
    encoder = indomain.encoder(place / "encoder").sha256
    assert [file.stem for file in sorted((place / "onestep" / "evaluations").iterdir())] == [
        "step-00000006",
        "step-00000012",
    ]
    found = receipt.read(place / "onestep" / "evaluations" / "step-00000012.json")
    assert found.samples["trained_in"] == [encoder]
    assert found.extractors["random"]["sha256"] != encoder
    held = best_of(place / "onestep")
    assert held is not None
    assert held["metric"] == "fd_random"


def test_unless_told_otherwise_it_is_evaluated_ten_times() -> None:
    steps = {"training": {"steps": 55}}
    assert tiny_config("onestep", **steps).evaluated_every == 5
    assert tiny_config("onestep", **steps, evaluation={"every": 0}).evaluated_every == 0
    assert tiny_config("diffusion", **steps).evaluated_every == 0


@pytest.mark.parametrize(
    "form", ["onestep", "onestep/checkpoints/step-00000006", "onestep/export", "weights", "pipeline", "samples"]
)
def test_the_encoder_of_its_loss_judges_nothing_alone(
    place: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is known by its weights, wherever it lies and whatever became of the run."""
    if form in ("weights", "pipeline"):
        assert main(["convert", str(place / "onestep"), "--to", form, "--out", str(place / form)]) == 0
    if form == "samples":
        assert main(["sample", str(place / "onestep"), "--count", "20", "--out", str(place / form)]) == 0
    moved = place / f"moved-{form.replace('/', '-')}"
    shutil.copytree(place / "encoder", moved)
    arguments = ["evaluate", str(place / form), "--count", "20", "--reference", "digits", "--metrics", "fd"]
    arguments += ["--out", str(place / "receipt.json"), "--features", f"encoder={moved}"]
    assert main(arguments) == 2
    told = capsys.readouterr().err
    assert "--features encoder: the generator was trained in these features" in told
    assert main([*arguments, "random"]) == 0
    found = receipt.read(place / "receipt.json")
    note = "encoder: the generator was trained in these features; judge it by random"
    assert note in found.warnings
    assert default_metric(found) == "fd_random"


def test_its_own_encoder_is_no_second_judge(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(place / "onestep")
    assert main(["evaluate", run, "--count", "20", "--metrics", "fd", "--features", f"encoder={run}"]) == 2
    assert "the generator was trained in these features" in capsys.readouterr().err
    diffusion = str(place / "diffusion")
    assert main(["evaluate", run, "--count", "20", "--metrics", "fd", "--features", f"encoder={diffusion}"]) == 0


def test_features_of_the_loss_alone_are_refused_before_the_first_step(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--from", str(place / "diffusion"), "--evaluation.features", f"encoder={place / 'encoder'}"]
    assert finetune(place, "blind", *flags) == 2
    assert "the generator was trained in these features" in capsys.readouterr().err
    assert not (place / "blind" / "checkpoints").exists()


def test_it_draws_in_one_step_everywhere(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(place / "onestep")
    assert main(["sample", run, "--count", "4", "--out", str(tmp_path / "samples")]) == 0
    assert "one_step, 1 network evaluation" in capsys.readouterr().err
    assert main(["sample", run, "--count", "4", "--steps", "2", "--out", str(tmp_path / "two")]) == 0
    assert "multistep, 2 network evaluations" in capsys.readouterr().err
    assert main(["sample", run, "--sampler", "heun", "--out", str(tmp_path / "no")]) == 2
    assert "this is a one-step model, which takes one_step, multistep" in capsys.readouterr().err
    assert main(["convert", run, "--out", str(tmp_path / "pipeline")]) == 0
    assert torch.equal(load(tmp_path / "pipeline").sample([0, 1, 2]), load(run).sample([0, 1, 2]))
    assert main(["convert", run, "--to", "program", "--out", str(tmp_path / "one.pt2")]) == 0
    model = load(run)
    noise = model.unit_noise([0]) * model.noise.sigma_max
    drawn = model.normalizer.decode(model.denoiser_for(torch.tensor([3]))(noise, model.noise.sigma_max))
    assert torch.equal(drawn, model.sample([3]))


def test_the_encoder_is_found_along_a_chain_of_generators(place: Path) -> None:
    """A diffusion run that goes on from a generator has no use for its encoder; one step from that run has."""
    arguments = ["--from", str(place / "diffusion"), "--training.steps", "1", "--out", str(place / "longer")]
    assert main(["finetune", str(place / "mine.yaml"), *arguments]) == 0
    assert "source" not in json.loads((place / "longer" / "handover.json").read_text())
    assert finetune(place, "chain", "--from", str(place / "longer"), "--training.steps", "1") == 0
    record = json.loads((place / "chain" / "handover.json").read_text())
    assert record["source"].startswith(str(place / "encoder"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--from: --stage onestep goes on from a trained generator"),
        (["--from", "{place}/diffusion", "--from-scratch"], "--from and --from-scratch: choose one"),
        (["--from", "{place}/nowhere"], "--from {place}/nowhere: does not exist"),
        (["--from", "{place}/diffusion", "--encoder", "{place}/nowhere"], "--encoder {place}/nowhere: does not exist"),
        (["--from", "{place}/encoder"], "a pre-trained encoder cannot sample"),
        (
            ["--from", "{place}/diffusion", "--objective.parameterization", "edm"],
            "objective.parameterization: x in the generator, edm here",
        ),
        (["--from", "{place}/diffusion", "--model.decoder.width", "32"], "model.decoder.width: 24 in the"),
        (
            ["--from", "{place}/diffusion", "--data.per-class", "1"],
            "every class has a single image; pass 0 to do without",
        ),
        (["--from", "{place}/diffusion", "--training.parallel", "fsdp"], "--stage onestep measures moments with whole"),
    ],
)
def test_mistakes(place: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert finetune(place, "mistake", *(argument.format(place=place) for argument in arguments)) != 0
    assert message.format(place=place) in capsys.readouterr().err
    assert not (place / "mistake" / "checkpoints").exists()


def test_a_generator_without_an_encoder_needs_one(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alone = str(place / "alone")
    arguments = ["--from-scratch", "--training.steps", "1", "--out", alone]
    assert main(["finetune", str(place / "mine.yaml"), *arguments]) == 0
    assert finetune(place, "needy", "--from", alone) == 2
    assert "--encoder: --stage onestep compares images in the features" in capsys.readouterr().err
    assert finetune(place, "given", "--from", alone, "--encoder", str(place / "encoder"), "--training.steps", "1") == 0


def test_an_encoder_that_has_moved_is_asked_for(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    moved = place / "elsewhere"
    (place / "encoder").rename(moved)
    try:
        assert finetune(place, "lost", "--from", str(place / "diffusion")) == 77
        told = capsys.readouterr().err
        assert f"--encoder: the generator in {place}/diffusion began with the encoder in {place}/encoder/chec" in told
    finally:
        moved.rename(place / "encoder")


def test_classes_without_images_are_told_not_learnt_and_not_judged(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Twelve classes, and images of ten: everything is as with ten, and the others are drawn where they are named."""
    begun = ["--from", str(place / "diffusion"), "--training.steps", "6"]
    assert finetune(place, "twelve", *begun, "--model.num-classes", "12") == 0
    assert "--model.num-classes 12: 2 of them have no images here" in capsys.readouterr().err
    wide, plain = read_log(place / "twelve"), read_log(place / "onestep")
    for name in ("loss", "recognition"):
        assert [line[name] for line in wide][:6] == pytest.approx([line[name] for line in plain][:6], rel=1e-3)
    receipts = [receipt.read(place / run / "evaluations" / "step-00000006.json") for run in ("twelve", "onestep")]
    assert {found.samples["labels"] for found in receipts} == {"all 10 classes in turn"}
    run = str(place / "twelve")
    judged = ["evaluate", run, "--count", "20", "--metrics", "fd", "--features", "random"]
    assert main([*judged, "--out", str(tmp_path / "receipt.json")]) == 0
    named = ["--classes", "11", "--count", "2", "--out", str(tmp_path / "samples")]
    assert main(["sample", run, *named]) == 0
    assert json.loads((tmp_path / "samples" / "samples.json").read_text())["class_names"] == ["unnamed 11"]
    assert main([*judged, "--classes", "11", "--metrics", "accuracy", "--features", "classifier"]) == 65
    assert "has no class unnamed 11" in capsys.readouterr().err


# The objective by itself ----------------------------------------------------------------------------------------------


def objective(**settings: object) -> OneStep:
    config = tiny_config("onestep", objective={"levels": [0.2, 1.0], "pixels": 4, **settings})
    torch.manual_seed(0)
    return OneStep(tiny_epg(config), config, build_encoder(config.model, config.data))


def test_samples_take_turns_at_the_levels() -> None:
    found = objective(levels=[0.1, 0.5, 2.0])
    which = torch.cat([found.turns(first, 4, torch.device("cpu")) for first in (0, 4)], dim=1)
    assert torch.equal(which.sum(0), torch.ones(8))
    assert which[:, :3].equal(torch.eye(3))
    assert torch.equal(found.turns(1, 3, torch.device("cpu")).argmax(0), torch.tensor([1, 2, 0]))


def test_every_image_is_seen_at_its_level_alone() -> None:
    found = objective()
    images, look = torch.randn(4, 1, 8, 8), torch.randn(4, 1, 8, 8)
    which = found.turns(0, 4, torch.device("cpu"))
    (features, first), (_, second), (small, everything) = found.seen(images, look, which)
    assert torch.equal(first, torch.tensor([1.0, 0, 1, 0]))
    assert torch.equal(first + second, everything)
    level = torch.tensor([0.2, 1.0, 0.2, 1.0])
    assert torch.allclose(features, found.encode(images, level, look))
    assert torch.allclose(small.view(4, 4, 4), images.view(4, 4, 2, 4, 2).mean((2, 4)))


def test_classes_have_their_own_moments() -> None:
    assert [space.mean.shape for space in objective(pixels=0).spaces] == [(3, 32), (3, 32)]
    assert [len(space.products) for space in objective().spaces] == [1, 1, 1]
    assert [len(space.products) for space in objective(covariance="class").spaces] == [3, 3, 3]


def test_recognition_adds_the_surprise_of_the_discriminants() -> None:
    batch = random_batch(tiny_config("onestep"))
    losses = []
    for weight in (0.0, 2.0):
        found = objective(recognition_weight=weight)
        for space in found.spaces:
            torch.manual_seed(1)
            torch.nn.init.normal_(space.directions)
        losses.append(found(found.draw(batch, 0)))
    without, told = ({name: value.detach() for name, value in found.items()} for found in losses)
    assert "recognition" not in without
    assert float(told["recognition"]) > 0
    assert float(told["loss"]) == pytest.approx(float(without["loss"] + 2 * told["recognition"]), rel=1e-5)


def test_the_frozen_encoder_gets_no_gradient() -> None:
    found = objective()
    config = tiny_config("onestep")
    losses = found(found.draw(random_batch(config), 0))
    losses["loss"].backward()
    assert all(p.grad is None for p in found.frozen_encoder.parameters())
    assert any(bool(p.grad.any()) for p in found.network.parameters() if p.grad is not None)
