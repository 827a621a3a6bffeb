"""Objectives from outside of the package, a generator and an encoder: two lines of registries and every verb."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

import pytest
import torch
from pydantic import Field
from torch import Tensor

from epg.checkpoint.loading import load, read_trained
from epg.cli import main
from epg.config.objectives import KINDS, ObjectiveConfig, Parameterization, Passes, Work
from epg.config.recipe import run_config
from epg.config.settings import RunConfig
from epg.cost.training import training_flops
from epg.data.loading.loader import Batch
from epg.errors import UserError
from epg.networks import EPG, RCM
from epg.networks.build import build_rcm
from epg.objectives import OBJECTIVES
from epg.objectives.base import Drawn, GeneratorObjective, Objective, Terms, at_levels
from epg.objectives.diagnostics import quarter
from epg.training.tracking import read_log


class ToyConfig(ObjectiveConfig):
    samples = True
    title = "A toy that predicts images from few levels"
    sampler = "euler"

    kind: Literal["toy"] = "toy"
    lowest: Annotated[float, Field(gt=0)] = 0.05
    highest: Annotated[float, Field(gt=0)] = 5.0

    @property
    def predicts(self) -> Parameterization:
        return "x"

    def problems(self) -> Iterator[str]:
        if self.lowest >= self.highest:
            yield f"--objective.lowest {self.lowest}: must be less than --objective.highest {self.highest}"


class Toy(GeneratorObjective):
    """|D(x_t, t) - x|, with ln t uniform: L1, and no rounding to a grid."""

    def __init__(self, network: EPG, config: RunConfig) -> None:
        super().__init__(network, config)
        assert isinstance(config.objective, ToyConfig)
        self.config = config.objective

    def levels(self, unit: Tensor) -> Tensor:
        """Unshifted levels (N,) from standard normal numbers (N,)."""
        low, high = (torch.tensor(level).log() for level in (self.config.lowest, self.config.highest))
        return (low + (high - low) * torch.special.ndtr(unit)).exp()

    def draw(self, batch: Batch, step: int) -> Drawn:
        draws = self.draws(batch, step)
        images = self.plain_images(batch, draws, flip=False)
        numbers = {"unit": draws.normal("level"), "noise": draws.normal("noise", images.shape[1:])}
        return {"images": images, "labels": batch.labels, **numbers}

    def terms(self, drawn: Mapping[str, Tensor]) -> Terms:
        images, unit = drawn["images"], drawn["unit"]
        sigma = self.shift * self.levels(unit)
        denoised = self.denoiser(at_levels(images, sigma, drawn["noise"]), sigma, drawn["labels"])
        return Terms({"absolute": (denoised - images).abs().flatten(1).mean(1)}, "absolute", quarter(unit))


class CalmConfig(ObjectiveConfig):
    samples = False
    title = "A toy encoder whose features do not move under noise"

    kind: Literal["calm"] = "calm"

    @property
    def work(self) -> Work:
        """One trained pass, and one as target."""
        return Work(spent=Passes(encoder=3 + 1), kept=Passes(encoder=1))


class Calm(Objective):
    """Another stage 1: squared distance of the projections of noisy and of clean images."""

    network: RCM

    def __init__(self, network: RCM, config: RunConfig) -> None:
        super().__init__(config)
        self.network = network

    @classmethod
    def build(cls, config: RunConfig) -> Self:
        return cls(build_rcm(config.model, config.data), config)

    def draw(self, batch: Batch, step: int) -> Drawn:
        draws = self.draws(batch, step)
        images = self.plain_images(batch, draws, flip=False)
        return {"images": images, "noise": draws.normal("noise", images.shape[1:])}

    def terms(self, drawn: Mapping[str, Tensor]) -> Terms:
        images = drawn["images"]
        level = torch.full((len(images),), self.shift)
        noisy = at_levels(images, level, drawn["noise"])
        clean, moved = (self.network.project(self.network.encode(x, level.log())) for x in (images, noisy))
        distance = (moved - clean.detach()).square().mean(1)
        return Terms({"distance": distance}, "distance", torch.zeros(len(images), dtype=torch.int64))


RECIPE = """
base: digits
calm:
  optimizer: {lr: 1.0e-3}
  training: {batch_size: 8, steps: 2, ema: [], log_every: 1, preview_every: 2, checkpoint_every: 2, trackers: []}
toy:
  objective: {lowest: 0.1}
  optimizer: {lr: 1.0e-3, warmup_steps: 2, schedule: constant}
  training: {batch_size: 16, steps: 6, ema: [0.9], log_every: 1, preview_every: 6, checkpoint_every: 3, trackers: []}
  sampling: {steps: 3}
model:
  encoder: {depth: 2, width: 16, heads: 2}
  decoder: {width: 24, heads: 2}
  projector_hidden: 16
  projector_out: 8
"""


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    """All that an objective needs besides its module."""
    KINDS["toy"], OBJECTIVES["toy"] = ToyConfig, Toy
    KINDS["calm"], OBJECTIVES["calm"] = CalmConfig, Calm
    yield
    for kind in ("toy", "calm"):
        del KINDS[kind], OBJECTIVES[kind]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, registered: None) -> Path:
    """A folder with the recipe, an encoder, and a run of the toy that was stopped after three steps and continued."""
    folder = tmp_path_factory.mktemp("toy")
    (folder / "mine.yaml").write_text(RECIPE)
    recipe, run = str(folder / "mine.yaml"), str(folder / "toy")
    assert main(["pretrain", recipe, "--stage", "calm", "--out", str(folder / "encoder")]) == 0
    toy = ["finetune", recipe, "--stage", "toy", "--encoder", str(folder / "encoder"), "--out", run]
    assert main([*toy, "--training.steps", "3"]) == 0
    assert main([*toy, "--training.steps", "6", "--override", "training.steps"]) == 0
    return folder


def test_trains_and_resumes_as_if_nothing_had_been(place: Path, tmp_path: Path) -> None:
    lines = read_log(place / "toy")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert all(line["absolute"] == line["loss"] > 0 and "absolute/q1" in line for line in lines if "loss" in line)
    arguments = ["--stage", "toy", "--encoder", str(place / "encoder"), "--training.preview-every", "0"]
    assert main(["finetune", str(place / "mine.yaml"), *arguments, "--out", str(tmp_path / "straight")]) == 0
    straight, resumed = (
        load(path, ema=0).denoiser.network.state_dict() for path in (tmp_path / "straight", place / "toy")
    )
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    assert list((place / "toy" / "previews").glob("*.png"))


def test_an_encoder_is_shown_published_and_probed(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = str(place / "encoder")
    assert list((place / "encoder" / "previews").glob("*.png"))  # images and noise on them
    assert main(["convert", encoder, "--out", str(tmp_path / "weights")]) == 0
    assert CalmConfig.title in (tmp_path / "weights" / "README.md").read_text()
    assert main(["sample", encoder, "--out", str(tmp_path / "samples")]) != 0
    assert "a pre-trained encoder cannot sample" in capsys.readouterr().err
    assert (
        main(
            [
                "probe",
                encoder,
                "--train-count",
                "60",
                "--test-count",
                "40",
                "--levels",
                "0.5",
                "--out",
                str(tmp_path / "probe"),
            ]
        )
        == 0
    )


def test_samples_and_evaluates(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", str(place / "toy"), "--count", "4", "--out", str(tmp_path / "samples")]) == 0
    assert "euler, 3 network evaluations" in capsys.readouterr().err  # the sampler of its settings
    assert len(list((tmp_path / "samples").rglob("*.png"))) >= 4
    out = str(tmp_path / "evaluation.json")
    features = ["--features", f"encoder={place / 'encoder'}", "--reference", "digits"]
    assert main(["evaluate", str(place / "toy"), "--count", "40", *features, "--out", out]) == 0
    assert "fd_encoder" in json.loads(Path(out).read_text())["metrics"]


@pytest.mark.parametrize("target", ["weights", "pipeline"])
def test_converts(place: Path, tmp_path: Path, target: str) -> None:
    out = tmp_path / target
    assert main(["convert", str(place / "toy"), "--to", target, "--out", str(out)]) == 0
    assert ToyConfig.title in (out / "README.md").read_text()
    labels = [0, 1]
    assert torch.equal(load(out).sample(labels), load(place / "toy").sample(labels))


def test_info_help_and_cost(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(place / "mine.yaml")
    assert main(["info", recipe]) == 0
    assert "toy" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["finetune", recipe, "--stage", "toy", "--help"])
    assert "--objective.lowest" in capsys.readouterr().out
    config = read_trained(place / "toy").config
    assert training_flops(config) == training_flops(config.model_copy(update={"objective": KINDS["diffusion"]()}))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ["pretrain", "RECIPE", "--stage", "toy"],
            "choose one of pretraining, calm; `epg finetune` trains it",
        ),
        (
            ["finetune", "RECIPE", "--stage", "nothing", "--from-scratch"],
            "choose one of diffusion, consistency, onestep, toy",
        ),
        (["finetune", "RECIPE", "--stage", "toy", "--from-scratch", "--objective.lowest", "9"], "must be less than"),
        (["finetune", "RECIPE", "--stage", "toy", "--from-scratch", "--objective.lowest", "-1"], "must be more than 0"),
        (["finetune", "RECIPE", "--stage", "toy", "--from-scratch", "--objective.lwest", "1"], "--objective.lowest"),
    ],
)
def test_mistakes(place: Path, arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(place / "mine.yaml")
    assert main([recipe if word == "RECIPE" else word for word in arguments]) == 2
    assert told in capsys.readouterr().err


def test_a_kind_that_nobody_registered(place: Path) -> None:
    """Never taken for another: recipes, run folders and exports say what there is."""
    del KINDS["toy"]
    try:
        with pytest.raises(UserError, match=r"there is no kind 'toy'; choose one of pretraining, diffusion"):
            load(place / "toy")
        with pytest.raises(UserError, match="toy"):
            run_config(str(place / "mine.yaml"), "diffusion")
    finally:
        KINDS["toy"] = ToyConfig
