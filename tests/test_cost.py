"""Hours, memory and the paper's tables of `epg info`."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import CheckpointPolicy

from epg.cli import main
from epg.cli.info import Machine, differs
from epg.config.recipe import expected, recipe_names, run_config
from epg.config.settings import RunConfig
from epg.cost.devices import PEAKS, named_peak
from epg.cost.memory import GIVEN, memory
from epg.cost.training import hours
from epg.errors import UserError
from epg.networks.build import build_encoder, build_epg
from epg.networks.layers import DecoderBlock, EncoderBlock
from epg.objectives.base import Objective
from epg.objectives.consistency import Consistency
from epg.runs import build_objective
from epg.training.parallel import kept, wrap
from tests.helpers import random_batch, randomize, tiny_config

STAGES = ("pretraining", "diffusion", "consistency")


def test_one_mfu_gives_the_hours_of_the_paper() -> None:
    """Appendix B.4: eight numbers of hours on H200s, seven of them within a fifth at 23.5 % (all of them, in fact)."""
    ratios = []
    for recipe in recipe_names():
        for stage, paper in expected(recipe).items():
            if paper.hours is not None:
                own = hours(run_config(recipe, stage), PEAKS["H200"] * 1e12, 0.235, int(paper.gpus))
                ratios.append(own / paper.hours)
    assert len(ratios) == 8
    assert sum(abs(ratio - 1) <= 0.2 for ratio in ratios) >= 7


def with_encoder(config: RunConfig) -> Objective:
    if config.stage == "consistency":
        return Consistency(build_epg(config.model, config.data), config, build_encoder(config.model, config.data))
    return build_objective(config)


def kept_bytes(objective: Objective, config: RunConfig) -> int:
    """What autograd keeps of a step, weights and their copies aside."""
    wrap(objective, config)
    draws = objective.draw(random_batch(config), 0)
    weights = {p.shape for p in objective.parameters()} | {p.T.shape for p in objective.parameters() if p.ndim == 2}
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.shape not in weights:
            storage = tensor.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    half = config.training.precision == "bf16"
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), torch.autocast("cpu", torch.bfloat16, half):
        loss = objective(draws)["loss"]
    assert loss.requires_grad
    return sum(seen.values())


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_activations_are_what_autograd_keeps(stage: str, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a GPU: on a CPU attention in half precision keeps float32."""
    monkeypatch.setattr("epg.networks.layers.slow_backward", lambda qkv: False)
    tower = {"width": 64, "heads": 2}
    changes: dict[str, Any] = {
        "data": {"image_size": 16, "channels": 3},
        "model": {"patch_size": 2, "encoder": {**tower, "depth": 4}, "decoder": {"width": 96, "heads": 3}},
        "training": {"precision": precision, "batch_size": 8},
    }
    config = tiny_config(stage, **changes)
    objective = with_encoder(config)
    randomize(objective)
    copies = memory(config, 0, checkpointing=False).activations
    estimate = memory(config, 8, checkpointing=False).activations - copies
    assert copies == 0 if precision == "fp32" else copies > 0
    assert kept_bytes(objective, config) == pytest.approx(estimate, rel=0.15)


class Given(TorchDispatchMode):
    """Numbers that the operations give which `kept` keeps."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if kept(None, func) == CheckpointPolicy.MUST_SAVE:
            self.numbers += sum(value.numel() for value in tree_leaves(out) if isinstance(value, Tensor))
        return out


def test_kept_products_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """`training.keep_products`: of every token what the linear layers and the attention of a block give."""
    monkeypatch.setattr("epg.networks.layers.slow_backward", lambda qkv: False)
    images, tokens, width = 4, 130, 64
    x = torch.zeros(images, tokens, width)
    with torch.autocast("cpu", torch.bfloat16), Given() as encoder:
        EncoderBlock(width, 2, 4.0)(x)
    with torch.autocast("cpu", torch.bfloat16), Given() as decoder:
        DecoderBlock(width, 2, 4.0, width)(x, x, x[:, 0])
    assert encoder.numbers / x.numel() == pytest.approx(GIVEN, rel=0.05)
    assert decoder.numbers / x.numel() == pytest.approx(GIVEN + 1, rel=0.05)
    config = run_config("imagenet256-xl", "diffusion")
    training = config.training.model_copy(update={"activation_checkpointing": True, "keep_products": True})
    some = memory(config.model_copy(update={"training": training}), 128, checkpointing=True).activations
    everything, least = (memory(config, 128, checkpointing=way).activations for way in (False, True))
    assert 0.5 < some / everything < 0.7  # docs/training.md: 27.2 GiB of 44.2, and 8.6
    assert least / everything < 0.25


def test_a_stem_keeps_what_is_of_every_pixel() -> None:
    changes = {"data": {"image_size": 16, "channels": 3}, "training": {"batch_size": 8}}
    plain, stem = (tiny_config("diffusion", **changes, model={"patch_size": 4, "stem": n}) for n in (0, 8))
    kept = kept_bytes(build_objective(stem), stem) - kept_bytes(build_objective(plain), plain)
    found = [memory(config, 8, checkpointing=False).activations for config in (plain, stem)]
    assert kept == pytest.approx(found[1] - found[0], rel=0.15)


def test_parts_of_memory() -> None:
    config = run_config("imagenet256-xl", "diffusion")
    own = memory(config, 128, checkpointing=False)
    assert own.weights == own.gradients == own.averages == own.optimizer / 2 == 4 * 582_986_064
    assert own.total == sum(vars(own).values())
    shards = memory(config, 128, checkpointing=False, devices=8)
    assert shards.weights == own.weights / 8
    assert shards.activations == own.activations
    assert memory(config, 128, checkpointing=True).activations < own.activations / 4
    muon = config.model_copy(update={"optimizer": config.optimizer.model_copy(update={"kind": "muon"})})
    assert memory(muon, 1, checkpointing=False).optimizer == own.weights
    momentum = memory(run_config("imagenet256-b", "pretraining"), 1, checkpointing=False)
    assert momentum.weights == 2 * momentum.gradients
    assert momentum.averages == 0


def test_tables_beside_the_paper_s(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--tables"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "imagenet" in line]
    assert len(lines) == sum(len(expected(recipe)) for recipe in recipe_names())
    marked = [line for line in lines if "parameters" in line or "GFLOPs" in line]
    assert [line.split("│")[1].strip() for line in marked] == ["imagenet256-g", "imagenet512-l", "imagenet512-l"]
    assert all(number in marked[-1] for number in ("544.9", "540", "114.3", "113", "75", "108.8"))


def test_what_differs() -> None:
    assert not differs("parameters", 106.8, 106)  # the paper cuts off in places
    assert not differs("parameters", 106.8, 107)
    assert differs("GFLOPs", 114.3, 113)
    assert not differs("GFLOPs", 114.3, None)
    assert differs("hours", 130, 100)
    assert not differs("hours", 119, 100)


def test_hours_and_memory_on_a_machine_that_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["info", "imagenet256-g", "--gpu", "b200", "--gpus", "16", "--mfu", "0.4"]) == 0
    told = capsys.readouterr().out
    assert all(words in told for words in ("16 x b200", "40.0% MFU", "GiB", "averages", "with fsdp"))
    assert main(["info", "digits", "--gpu", "Voodoo2"]) == 2
    assert "--gpu Voodoo2: not in the table; choose one of B200" in capsys.readouterr().err
    assert main(["info", "digits", "--mfu", "2"]) == 2
    with pytest.raises(UserError):
        named_peak("")
    assert str(Machine()) == "8 x H200"
