"""REPA: tokens of a generator in training are drawn to those of a frozen encoder on the clean image."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from epg.checkpoint import export
from epg.checkpoint.checkpoint import find
from epg.checkpoint.loading import load, read_trained
from epg.cli import main
from epg.config.settings import RunConfig, parse
from epg.config.validation import problems
from epg.cost.memory import memory
from epg.cost.network import alignment_cost, encoder_cost
from epg.cost.shape import shape_of
from epg.cost.training import training_flops
from epg.errors import UserError
from epg.objectives.diffusion import Diffusion
from epg.runs import build_objective, prepare_run, train
from epg.schedule import input_scale, time_condition
from epg.storage.artefact import digest_of
from epg.training.tracking import read_log
from tests import started
from tests.helpers import random_batch, tiny_config
from tests.training.test_loop import CrashError, assert_identical, crash_after, tensors, tiny

ALIGNED = {"objective": {"alignment_weight": 0.5, "alignment_block": 1}}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    train(tiny("pretraining", training={"steps": 2}), folder)
    return folder


def test_the_loss_is_the_mean_distance_of_patches_from_the_frozen_ones() -> None:
    config = tiny_config("diffusion", **ALIGNED)
    objective = build_objective(config)
    assert isinstance(objective, Diffusion)
    drawn = objective.draw(random_batch(config), 0)
    losses = objective(drawn)
    images, sigma = drawn["images"], objective.levels(drawn["unit"])
    level = torch.full((len(images),), config.shift * config.noise.sigma_min)
    scale = input_scale(level, config.noise.sigma_data).view(-1, 1, 1, 1)
    with torch.no_grad():
        clean = objective.frozen_encoder(scale * images, time_condition(level))[0][:, 2:]
        t = config.shift * objective.grid[(objective.grid[None] - sigma[:, None]).abs().argmin(1)]
        noisy = images + t.view(-1, 1, 1, 1) * drawn["noise"]
        scaled = input_scale(t, config.noise.sigma_data).view(-1, 1, 1, 1) * noisy
        network = objective.network
        _, blocks = network.encoder(scaled, time_condition(t), network.class_embedding(drawn["labels"]))
        cosines = F.cosine_similarity(objective.alignment.head(blocks[0][:, 2:]), clean, dim=-1)
    assert float(losses["alignment"]) == pytest.approx(0.5 * float(1 - cosines.mean()), rel=1e-4)
    assert losses["loss"].item() == pytest.approx(losses["denoising"].item() + losses["alignment"].item(), rel=1e-6)
    losses["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in objective.alignment.parameters())
    assert all(p.grad is None for p in objective.frozen_encoder.parameters())


def test_what_is_compared_begins_as_without_it(encoder: Path, tmp_path: Path) -> None:
    run = prepare_run(tiny("diffusion"), tmp_path / "plain", encoder=encoder)
    plain, batch = run.trainer.objective, random_batch(run.config)
    aligned = prepare_run(tiny("diffusion", **ALIGNED), tmp_path / "aligned", encoder=encoder).trainer.objective
    first, second = (objective(objective.draw(batch, 0)) for objective in (plain, aligned))
    assert torch.equal(first["denoising"], second["denoising"])
    assert all(torch.equal(value, aligned.state_dict()[name]) for name, value in plain.state_dict().items())


def _train(config: dict[str, Any], folder: str, encoder: str) -> None:
    train(parse(config, "test"), Path(folder), encoder=Path(encoder))


def test_resumed_in_two_processes_and_exported(encoder: Path, tmp_path: Path) -> None:
    """With an internal head beside it, which shares the pass."""
    config = tiny("diffusion", objective={**ALIGNED["objective"], "internal_weight": 0.5})
    config = parse(config.model_dump() | {"training": config.training.model_dump() | {"precision": "fp64"}}, "test")
    train(config, tmp_path / "one", encoder=encoder)
    run = prepare_run(config, tmp_path / "crashed", encoder=encoder)
    crash_after(run.trainer, 4)
    with pytest.raises(CrashError):
        run.trainer.run()
    train(config, tmp_path / "crashed", encoder=encoder)
    one = tensors(tmp_path / "one")
    assert_identical(one, tensors(tmp_path / "crashed"))
    for parallel in ("ddp", "fsdp"):
        other = config.model_dump(mode="json")
        other["training"]["parallel"] = parallel
        started.call(_train, other, tmp_path / parallel, encoder, processes=2)
        logs = zip(read_log(tmp_path / "one"), read_log(tmp_path / parallel), strict=True)
        assert all(b[name] == pytest.approx(a[name], rel=1e-9) for a, b in logs for name in ("loss", "alignment"))
    assert any(name.startswith("model/alignment.head.") for name in one)
    assert any(name.startswith("optimizer/alignment.head.") for name in one)
    exported = export.read(tmp_path / "one" / export.FOLDER)
    assert {name.split(".")[0] for name in exported.tensors()} == {
        "encoder",
        "decoder",
        "class_embedding",
        "internal_head",
    }
    frozen = {k.removeprefix("frozen_encoder."): v for k, v in find(tmp_path / "one").tensors("model").items()}
    names = load(encoder, encoder=True).network.state_dict()
    assert exported.trained_in == (digest_of({k: frozen[k].float() for k in names}),)
    assert read_trained(tmp_path / "one").generator().sample([0], seed=1).shape == (1, 1, 8, 8)


def test_a_generator_from_scratch_may_be_drawn_to_an_encoder(
    encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    random = tiny("diffusion", objective={**ALIGNED["objective"], "initial": "random"})
    found = prepare_run(random, tmp_path / "run", encoder=encoder).trainer.objective
    scratch = build_objective(tiny("diffusion", model={"num_classes": 10})).state_dict()
    own = load(encoder, encoder=True).network.state_dict()
    state = found.state_dict()
    assert all(torch.equal(state[f"network.encoder.{name}"], scratch[f"network.encoder.{name}"]) for name in own)
    assert all(torch.equal(state[f"frozen_encoder.{name}"], value) for name, value in own.items())
    numbers = sum(parameter.numel() for parameter in found.network.parameters())
    assert f"Starting at random: {numbers:,} numbers of the generator, which begins" in capsys.readouterr().err


def test_costs() -> None:
    def counted(config: RunConfig) -> float:
        made, batch = build_objective(config).train(), random_batch(config)
        with FlopCounterMode(display=False) as counter:  # which leaves attention out on a CPU
            made(made.draw(batch, 0))["loss"].backward()
        return counter.get_total_flops() / len(batch)

    config, plain = tiny_config("diffusion", **ALIGNED), tiny_config("diffusion")
    objective, shape = build_objective(config), shape_of(config.model, config.data)
    frozen, head = encoder_cost(shape), alignment_cost(shape)
    assert counted(config) - counted(plain) == 2 * (frozen.macs + 3 * head.macs)
    assert training_flops(config) - training_flops(plain) == 2 * (frozen.macs_with_attention + 3 * head.macs)
    told = memory(config, 1, checkpointing=False)
    assert told.gradients == 4 * sum(p.numel() for p in objective.parameters() if p.requires_grad)
    assert told.weights == 4 * sum(p.numel() for p in objective.parameters())


def test_what_does_not_go_together_is_said_before(
    encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frozen = tiny_config("diffusion", **ALIGNED, optimizer={"frozen_encoder": True})
    assert "which does not move with --optimizer.frozen-encoder" in next(problems(frozen))
    deep = tiny_config("diffusion", objective={"alignment_weight": 1, "alignment_block": 3})
    assert next(problems(deep)).startswith("--objective.alignment-block 3: the encoder has 2 blocks")
    useless = tiny_config("diffusion", objective={"initial": "random"})
    assert next(problems(useless)).startswith("--objective.initial random: leaves --encoder without use")
    out = ["--out", str(tmp_path / "run"), "--objective.alignment-weight", "0.5"]
    assert main(["finetune", "digits", "--from-scratch", *out]) == 2
    err = " ".join(capsys.readouterr().err.split())
    assert "with --objective.initial random where diffusion begins from scratch" in err
    assert "or --objective.alignment-weight 0 to do without" in err
    assert not (tmp_path / "run" / "config.yaml").exists()
    train(tiny("diffusion", training={"steps": 1}), tmp_path / "scratch")
    with pytest.raises(UserError, match="--from does not say where its own came from"):
        prepare_run(tiny("diffusion", **ALIGNED), tmp_path / "on", base=tmp_path / "scratch")
