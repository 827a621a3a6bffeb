"""What the paper compares, one setting each: initialisation, frozen or slower encoder, either loss, momentum."""

import json
import math
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from epg import schedule
from epg.checkpoint import checkpoint
from epg.cli import main
from epg.config.recipe import merge
from epg.config.sections import OptimizerConfig
from epg.config.validation import problems
from epg.cost.training import training_flops
from epg.distributed import processes
from epg.errors import ArtefactError
from epg.networks.layers import EncoderBlock, transformer_blocks
from epg.objectives.diffusion import Diffusion
from epg.objectives.pretraining import Pretraining
from epg.runs import build_objective, prepare_run, train
from epg.training.optim import RATE, make_optimizer
from tests import started
from tests.helpers import random_batch, tiny_config, tiny_epg
from tests.training.test_loop import read_log, tensors, tiny

SMALL = shlex.split(
    "--model.encoder.depth 2 --model.encoder.width 16 --model.encoder.heads 2 --model.decoder.width 24 "
    "--model.decoder.heads 2 --model.projector-hidden 16 --model.projector-out 8 --training.batch-size 16 "
    "--training.steps 3 --training.preview-every 0 --training.trackers --optimizer.warmup-steps 1"
)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    assert main(["pretrain", "digits", "--out", str(folder), *SMALL]) == 0
    return folder


def weights(folder: Path, prefix: str) -> dict[str, Tensor]:
    """The tensors of a run's newest checkpoint below a name."""
    found = checkpoint.find(folder).tensors("model")
    return {name.removeprefix(prefix): tensor for name, tensor in found.items() if name.startswith(prefix)}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[name].equal(b[name]) for name in a)


def finetune(encoder: Path, out: Path, *flags: str) -> Path:
    assert main(["finetune", "digits", "--encoder", str(encoder), "--out", str(out), *SMALL, *flags]) == 0
    return out


# The encoder's training -----------------------------------------------------------------------------------------------


def test_a_frozen_encoder_keeps_its_bits_and_the_rest_is_trained(encoder: Path, tmp_path: Path) -> None:
    run = finetune(encoder, tmp_path / "frozen", "--optimizer.frozen-encoder")
    before = weights(encoder, "network.encoder.")
    assert same(weights(run, "network.encoder."), before)
    assert not same(weights(finetune(encoder, tmp_path / "whole"), "network.encoder."), before)
    start = build_objective(tiny("diffusion", model={"num_classes": 10})).state_dict()
    trained = weights(run, "network.decoder.")
    assert not any(trained[name].equal(start[f"network.decoder.{name}"]) for name in ("out.weight", "norm.weight"))


def test_a_frozen_encoder_resumes_exactly(tmp_path: Path) -> None:
    frozen = {"frozen_encoder": True, "kind": "muon"}
    train(tiny("diffusion", optimizer=frozen, training={"steps": 6}), tmp_path / "whole")
    train(tiny("diffusion", optimizer=frozen, training={"steps": 6}), tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "step-00000006")
    train(tiny("diffusion", optimizer=frozen, training={"steps": 6}), tmp_path / "parts")
    assert same(tensors(tmp_path / "whole"), tensors(tmp_path / "parts"))


def test_a_frozen_encoder_costs_less() -> None:
    whole, frozen = (tiny_config("diffusion", optimizer={"frozen_encoder": value}) for value in (False, True))
    objective, batch = Diffusion(tiny_epg(frozen).train(), frozen), random_batch(frozen)
    with FlopCounterMode(display=False) as counter:
        objective(objective.draw(batch, 0))["loss"].backward()
    assert counter.get_total_flops() / len(batch) == pytest.approx(training_flops(frozen), rel=0.05)
    assert training_flops(frozen) < 0.85 * training_flops(whole)


def test_only_a_generator_has_an_encoder_to_freeze() -> None:
    (found,) = problems(tiny_config("pretraining", optimizer={"frozen_encoder": True}))
    assert found.startswith("--optimizer.frozen-encoder: is for generators")


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_rates_fall_towards_the_encoder_s_first_layer(kind: str) -> None:
    """decay^(blocks from here to the end), 1 behind the encoder."""
    config = OptimizerConfig(lr=1e-3, layer_decay=0.5, kind=kind, muon_lr=2e-3)
    network = tiny_epg()
    optimizer = make_optimizer(network, config)
    optimizer.set_rate(1e-3)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    found = {name: rates[id(p)] for name, p in network.named_parameters()}
    factor = 2 if kind == "muon" else 1
    assert found["encoder.position_embedding"] == found["encoder.patch_embedding.weight"] == 1e-3 / 8
    assert found["encoder.blocks.0.norm1.weight"] == 1e-3 / 4
    assert found["encoder.blocks.0.mlp.fc1.weight"] == pytest.approx(factor * 1e-3 / 4)
    assert found["encoder.blocks.1.mlp.fc1.weight"] == pytest.approx(factor * 1e-3 / 2)
    assert {value for name, value in found.items() if not name.startswith("encoder.")} <= {1e-3, factor * 1e-3}
    assert found["encoder.norm.weight"] == 1e-3
    assert len(found) == len(list(network.parameters()))


def test_without_decay_all_rates_are_one() -> None:
    groups = make_optimizer(tiny_epg(), OptimizerConfig(lr=1e-3)).param_groups
    assert [group[RATE] for group in groups] == [1.0, 1.0]


# Pre-training ---------------------------------------------------------------------------------------------------------


def pretraining(**objective: object) -> Pretraining:
    made = build_objective(tiny("pretraining", objective=objective, training={"precision": "fp64"}))
    assert isinstance(made, Pretraining)
    return made.double().train()


def gradients(objective: Pretraining) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    losses = objective(objective.draw(random_batch(tiny("pretraining")), 3))
    losses["loss"].backward()
    return losses, {name: p.grad for name, p in objective.network.named_parameters() if p.grad is not None}


def test_weights_of_the_two_losses() -> None:
    """Either alone, and in proportion: loss and gradient are sums."""
    losses, whole = gradients(pretraining())
    contrastive, first = gradients(pretraining(consistency_weight=0.0))
    consistency, second = gradients(pretraining(contrastive_weight=0.0))
    weighted, third = gradients(pretraining(contrastive_weight=2.0, consistency_weight=0.5))
    assert {name for name in contrastive if "/" not in name} == {"loss", "contrastive"}
    assert {name for name in consistency if "/" not in name} == {"loss", "consistency"}
    assert not any(name.startswith("projector.") for name in second)
    assert float((contrastive["loss"] + consistency["loss"]).detach()) == pytest.approx(
        losses["loss"].item(), rel=1e-12
    )
    expected = 2 * contrastive["loss"] + consistency["loss"] / 2
    assert weighted["loss"].item() == pytest.approx(expected.item(), rel=1e-12)
    for name, gradient in whole.items():
        other = second.get(name, torch.zeros(()))
        torch.testing.assert_close(first[name] + other, gradient, rtol=1e-8, atol=1e-12)
        torch.testing.assert_close(2 * first[name] + other / 2, third[name], rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("left_out", ["contrastive", "consistency"])
def test_one_loss_alone_is_trained_and_resumed_and_costs_less(left_out: str, tmp_path: Path) -> None:
    config = tiny("pretraining", objective={f"{left_out}_weight": 0.0}, training={"steps": 4})
    train(config, tmp_path / "whole")
    train(config, tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "step-00000004")
    train(config, tmp_path / "parts")
    assert same(tensors(tmp_path / "whole"), tensors(tmp_path / "parts"))
    assert training_flops(config) < 0.8 * training_flops(tiny("pretraining"))
    start = build_objective(config).state_dict()["network.projector.0.weight"]
    trained = weights(tmp_path / "whole", "network.projector.")["0.weight"]
    assert trained.equal(start) is (left_out == "contrastive")


def test_no_loss_at_all_is_refused() -> None:
    config = tiny_config("pretraining", objective={"contrastive_weight": 0, "consistency_weight": 0})
    assert [line.split(":")[0] for line in problems(config)] == ["--objective.contrastive-weight 0"]


def test_annealed_momentum() -> None:
    """From start to end (nearly: tanh(5)), most of it in the first half; the value at a tenth by hand."""
    found = [schedule.momentum(k, 100, 0.99, 0.9999) for k in range(101)]
    assert found[0] == 0.99
    assert found[100] == pytest.approx(0.99 + 0.0099 * math.tanh(5))
    assert found == sorted(found)
    assert found[50] > 0.9997
    m = math.sqrt(0.99**2 + 0.1 * (0.9999**2 - 0.99**2))
    c = 2 / (1 + math.exp(-10 * (m - 0.99) / 0.0099)) - 1
    assert found[10] == pytest.approx(c * 0.9999 + (1 - c) * 0.99, rel=1e-12)
    assert schedule.momentum(7, 100, 0.99, 0.99) == 0.99


def test_the_momentum_network_follows_the_annealed_momentum() -> None:
    objective = pretraining(momentum=0.5, momentum_end=0.9)
    before = objective.momentum_network.encoder.norm.weight.clone()
    with torch.no_grad():
        objective.network.encoder.norm.weight += 1
    objective.after_step(4)
    decay = schedule.momentum(4, 8, 0.5, 0.9)
    torch.testing.assert_close(objective.momentum_network.encoder.norm.weight, before + 1 - decay)
    assert objective.schedule_numbers(4)["momentum"] == decay
    assert "momentum" not in pretraining().schedule_numbers(4)


# Initialisation -------------------------------------------------------------------------------------------------------


def test_a_generator_may_begin_with_the_momentum_encoder(encoder: Path, tmp_path: Path) -> None:
    run = finetune(encoder, tmp_path / "run", "--objective.initial", "momentum", "--optimizer.frozen-encoder")
    assert same(weights(run, "network.encoder."), weights(encoder, "momentum_network.encoder."))
    assert not same(weights(encoder, "network.encoder."), weights(encoder, "momentum_network.encoder."))
    config = tiny("diffusion", objective={"initial": "momentum"})
    with pytest.raises(ArtefactError, match="holds no momentum encoder; pass the run folder"):
        prepare_run(config, tmp_path / "other", encoder=encoder / "export")


def test_the_judge_may_stay_where_the_generator_begins_at_random(encoder: Path, tmp_path: Path) -> None:
    """The paper's "w/o RCM"."""
    config = tiny("consistency", objective={"initial": "random"})
    state = prepare_run(config, tmp_path / "run", encoder=encoder).trainer.objective.state_dict()
    scratch = build_objective(tiny("consistency", model={"num_classes": 10})).state_dict()
    for name, tensor in weights(encoder, "network.encoder.").items():
        assert state[f"frozen_encoder.{name}"].equal(tensor)
        assert state[f"network.encoder.{name}"].equal(scratch[f"network.encoder.{name}"])
    (found,) = problems(tiny_config("consistency", objective={"initial": "random", "auxiliary_weight": 0}))
    assert "pass --from-scratch" in found


WIDTH, DEPTH = 16, 2


def plain_vit(side: int, prefix: str = "", patch: int = 4, scales: bool = False) -> dict[str, Tensor]:
    """A state dict as timm names it: one token besides the patches, qkv with biases, a head."""
    random = torch.Generator().manual_seed(0)
    shapes = {"patch_embed.proj.weight": (WIDTH, 1, patch, patch), "patch_embed.proj.bias": (WIDTH,)}
    shapes |= {"cls_token": (1, 1, WIDTH), "pos_embed": (1, 1 + side**2, WIDTH)}
    for i in range(DEPTH):
        for layer, (out, into) in {
            "attn.qkv": (3, 1),
            "attn.proj": (1, 1),
            "mlp.fc1": (4, 1),
            "mlp.fc2": (1, 4),
        }.items():
            shapes[f"blocks.{i}.{layer}.weight"] = (out * WIDTH, into * WIDTH)
            shapes[f"blocks.{i}.{layer}.bias"] = (out * WIDTH,)
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", *["ls1.gamma", "ls2.gamma"] * scales):
            shapes[f"blocks.{i}.{name}"] = (WIDTH,)
    shapes |= {"norm.weight": (WIDTH,), "norm.bias": (WIDTH,), "head.weight": (3, WIDTH), "head.bias": (3,)}
    return {prefix + name: torch.randn(shape, generator=random) for name, shape in shapes.items()}


@pytest.mark.parametrize("prefix", ["", "module.base_encoder.", "teacher.backbone.", "backbone."])
def test_a_plain_vit_as_encoder(prefix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """MoCo v3's, DINO's and timm's names; what is kept and dropped is said and recorded."""
    tensors = plain_vit(side=2, prefix=prefix)
    save_file(tensors | {"other.weight": torch.ones(2)}, tmp_path / "vit.safetensors")
    run = finetune(tmp_path / "vit.safetensors", tmp_path / "run", "--optimizer.frozen-encoder")
    found = weights(run, "network.encoder.")
    for ours, theirs in {
        "patch_embedding.weight": "patch_embed.proj.weight",
        "blocks.1.attention.qkv.weight": "blocks.1.attn.qkv.weight",
        "blocks.0.mlp.fc2.bias": "blocks.0.mlp.fc2.bias",
        "cls_token": "cls_token",
        "norm.bias": "norm.bias",
    }.items():
        assert found[ours].equal(tensors[prefix + theirs]), ours
    positions = tensors[f"{prefix}pos_embed"]
    assert found["position_embedding"][:, 0].equal(positions[:, 0])
    assert not found["position_embedding"][:, 1].any()
    assert found["position_embedding"][:, 2:].equal(positions[:, 1:])
    told = capsys.readouterr().err
    assert "A plain ViT: 28 tensors kept, the time token's position begins at 0" in told
    assert "blocks.*.attn.qkv.bias, head.bias, head.weight" in told
    recorded = json.loads((run / "handover.json").read_text())
    assert {"blocks.0.attn.qkv.bias", "head.bias"} <= set(recorded["left_out"])
    assert "positions" not in recorded["notes"]


def test_positions_are_resized(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A plane stays a plane, nearly and away from its border: bicubic with torch's kernel."""
    tensors = plain_vit(side=8)
    ramp = (torch.arange(8.0) + 0.5) / 8
    tensors["pos_embed"][:, 1:] = (ramp[:, None] + 2 * ramp[None]).reshape(1, 64, 1)
    save_file(tensors, tmp_path / "vit.safetensors")
    flags = ["--data.image-size", "48", "--model.patch-size", "4", "--optimizer.frozen-encoder"]
    run = finetune(tmp_path / "vit.safetensors", tmp_path / "run", *flags)
    found = weights(run, "network.encoder.")["position_embedding"][0, 2:].view(12, 12, WIDTH)
    wanted = (torch.arange(12.0) + 0.5) / 12
    plane = (wanted[:, None] + 2 * wanted[None])[..., None].expand(12, 12, WIDTH)
    torch.testing.assert_close(found[3:9, 3:9], plane[3:9, 3:9], rtol=0, atol=0.03)
    assert "positions resized from 8x8 to 12x12" in capsys.readouterr().err


def test_scales_of_layers_are_multiplied_in(tmp_path: Path) -> None:
    """DINOv2's: the block computes x + scale * branch(x)."""
    tensors = plain_vit(side=2, scales=True)
    save_file(tensors, tmp_path / "vit.safetensors")
    state = prepare_run(
        tiny("diffusion"), tmp_path / "run", encoder=tmp_path / "vit.safetensors"
    ).trainer.objective.state_dict()
    block, plain = EncoderBlock(WIDTH, 2, 4.0), EncoderBlock(WIDTH, 2, 4.0)
    prefix = "network.encoder.blocks.0."
    block.load_state_dict({n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)})
    names = {n: n.replace("attention.", "attn.") for n in plain.state_dict()}
    plain.load_state_dict({ours: tensors[f"blocks.0.{theirs}"] for ours, theirs in names.items()})
    x = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(1))
    middle = x + tensors["blocks.0.ls1.gamma"] * plain.attention(plain.norm1(x))
    expected = middle + tensors["blocks.0.ls2.gamma"] * plain.mlp(plain.norm2(middle))
    torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-4)


def test_a_vit_of_another_shape_is_refused(tmp_path: Path) -> None:
    save_file(plain_vit(side=2, patch=2), tmp_path / "patch.safetensors")
    with pytest.raises(ArtefactError, match="a ViT with 1x2x2 patches; this recipe has 1x4x4"):
        prepare_run(tiny("diffusion"), tmp_path / "run", encoder=tmp_path / "patch.safetensors")
    save_file(plain_vit(side=2), tmp_path / "width.safetensors")
    wide = tiny("diffusion", model={"encoder": {"depth": 2, "width": 32, "heads": 2}})
    with pytest.raises(ArtefactError, match=r"norm1\.bias: \(16,\) torch\.float32, not \(32,\)"):
        prepare_run(wide, tmp_path / "run", encoder=tmp_path / "width.safetensors")


def _train_one(stage: str, changes: dict, folder: str) -> None:
    train(tiny(stage, **changes), Path(folder))


# Several processes ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        ("pretraining", {"objective": {"contrastive_weight": 0.0}}),
        ("diffusion", {"optimizer": {"frozen_encoder": True}}),
    ],
)
def test_two_processes_equal_one(stage: str, changes: dict, parallel: str, tmp_path: Path) -> None:
    """Where a part of the network takes no gradient."""
    training = {"precision": "fp64", "parallel": parallel, "steps": 4}
    settings = merge(changes, {"training": training})
    started.call(_train_one, stage, settings, tmp_path / "two", processes=2)
    train(tiny(stage, **settings), tmp_path / "one")
    first, second = tensors(tmp_path / "one"), tensors(tmp_path / "two")
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-9, atol=1e-10)


def _train_and_look(parallel: str, folder: str) -> None:
    config = tiny("diffusion", training={"precision": "bf16", "parallel": parallel, "steps": 4, "preview_every": 4})
    seen: list[torch.dtype] = []
    with processes():
        run = prepare_run(config, Path(folder))
        draw, around = run.trainer.preview, []
        assert draw is not None

        def preview(file: Path) -> None:
            around.append(torch.is_autocast_enabled("cpu"))
            draw(file)

        run.trainer.preview = preview
        attention = transformer_blocks(run.trainer.objective)[0].attention
        attention.register_forward_pre_hook(lambda module, inputs: seen.append(module.qkv.weight.dtype))
        run.trainer.run()
    assert around == [False], "what judges images computes as ever"
    assert set(seen) == {torch.bfloat16 if parallel == "fsdp" else torch.float32}
    assert all(p.dtype == torch.float32 for p in run.trainer.objective.parameters())


def test_shards_are_gathered_in_the_precision_of_the_products(tmp_path: Path) -> None:
    """Which rounds nothing that autocast would not: what is left is the affine part of LayerNorm."""
    for parallel in ("ddp", "fsdp"):
        started.call(_train_and_look, parallel, tmp_path / parallel, processes=2)
    ddp, fsdp = (read_log(tmp_path / parallel) for parallel in ("ddp", "fsdp"))
    for one, other in zip(ddp, fsdp, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=5e-3)
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=5e-2)
    assert tensors(tmp_path / "fsdp").keys() == tensors(tmp_path / "ddp").keys()
