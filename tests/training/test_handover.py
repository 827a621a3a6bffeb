from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from epg.checkpoint import saving
from epg.checkpoint.handover import EncoderWeights, hand_over, read_encoder, report
from epg.config.settings import RunConfig
from epg.errors import ArtefactError
from epg.networks.build import build_encoder, build_rcm
from epg.objectives.base import Objective
from epg.objectives.diffusion import Diffusion
from epg.objectives.pretraining import Pretraining
from tests.helpers import GOLDEN, randomize, run_state, tiny_config, tiny_epg


def save_run(folder: Path, objective: Objective, config: RunConfig) -> Path:
    saving.save(folder / "checkpoints", 7, {"model": objective.state_dict()}, run_state(config), keep=2)
    return folder


@pytest.fixture
def pretrained(tmp_path: Path) -> tuple[Path, Pretraining]:
    config = tiny_config("pretraining")
    objective = Pretraining(build_rcm(config.model, config.data), config)
    randomize(objective.network)  # so that it differs from the momentum network
    return save_run(tmp_path / "run", objective, config), objective


def test_the_encoder_arrives_bit_exactly(pretrained):
    folder, objective = pretrained
    weights = read_encoder(folder, tiny_config())
    network = tiny_epg(seed=3)
    decoder = {k: v.clone() for k, v in network.decoder.state_dict().items()}
    hand_over(network.encoder, weights)
    source = objective.network.encoder.state_dict()
    assert all(torch.equal(v, source[k]) for k, v in network.encoder.state_dict().items())
    assert all(torch.equal(v, decoder[k]) for k, v in network.decoder.state_dict().items())


def test_it_is_the_trained_encoder_and_not_the_momentum_one(pretrained):
    folder, objective = pretrained
    weights = read_encoder(folder, tiny_config("consistency"))
    assert torch.equal(weights.tensors["cls_token"], objective.network.encoder.cls_token)
    assert not torch.equal(weights.tensors["cls_token"], objective.momentum_network.encoder.cls_token)
    assert weights.left_out
    assert all(n.startswith(("network.projector.", "momentum_network.")) for n in weights.left_out)


def test_a_checkpoint_folder_will_do(pretrained):
    folder, _ = pretrained
    direct = folder / "checkpoints" / "step-00000007"
    assert read_encoder(direct, tiny_config()).tensors.keys() == read_encoder(folder, tiny_config()).tensors.keys()


def test_classes_and_decoder_may_differ(pretrained):
    config = tiny_config(model={"num_classes": 7, "decoder": {"width": 32}}, training={"batch_size": 16})
    assert read_encoder(pretrained[0], config).tensors


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model": {"encoder": {"depth": 3}}}, ["model.encoder"]),
        ({"model": {"encoder": {"heads": 4}}}, ["model.encoder"]),
        ({"model": {"patch_size": 4}, "data": {"image_size": 16}}, ["model.patch_size: 2", "data.image_size: 8"]),
        ({"model": {"mlp_ratio": 2.0}}, ["model.mlp_ratio: 4.0 in the encoder, 2.0 here"]),
        ({"data": {"channels": 3, "normalization": "imagenet"}}, ["data.channels: 1", "data.normalization: symmetric"]),
        ({"noise": {"shift": 0.5}}, ["noise.shift: 1.0 in the encoder, 0.5 here"]),
    ],
)
def test_differences_are_listed(pretrained, changes: dict[str, Any], named):
    with pytest.raises(ArtefactError, match="does not fit this recipe") as error:
        read_encoder(pretrained[0], tiny_config(**changes))
    message = str(error.value)
    assert str(pretrained[0]) in message
    assert all(n in message for n in named)
    assert len(message.splitlines()) == 2 + len(named)


def test_a_generator_is_no_encoder(tmp_path):
    config = tiny_config()
    folder = save_run(tmp_path, Diffusion(tiny_epg(config), config), config)
    with pytest.raises(ArtefactError, match="a diffusion run; pass a pre-training run"):
        read_encoder(folder, config)


def test_missing_run(tmp_path):
    with pytest.raises(ArtefactError, match="does not exist"):
        read_encoder(tmp_path / "absent", tiny_config())


def test_damaged_run(pretrained):
    folder, _ = pretrained
    (folder / "checkpoints" / "step-00000007" / "model.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(ArtefactError, match="no checkpoint verifies"):
        read_encoder(folder, tiny_config())


# Weight files ---------------------------------------------------------------------------------------------------------

GOLDEN_SIZES = {
    "data": {"image_size": 32, "channels": 3},
    "model": {"patch_size": 4, "encoder": {"depth": 3, "width": 48, "heads": 3}},
}


def test_weights_of_the_release():
    config = tiny_config(**GOLDEN_SIZES)
    weights = read_encoder(GOLDEN / "official_rcm_weights.safetensors", config)
    encoder = build_encoder(config.model, config.data)
    hand_over(encoder, weights)
    assert all(torch.equal(v, weights.tensors[k]) for k, v in encoder.state_dict().items())
    assert {n.split(".")[0] for n in weights.left_out} == {"projector"}


def test_weights_of_another_architecture():
    config = tiny_config()
    weights = read_encoder(GOLDEN / "official_rcm_weights.safetensors", config)
    encoder = build_encoder(config.model, config.data)
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    with pytest.raises(ArtefactError, match="not a checkpoint of this configuration") as error:
        hand_over(encoder, weights)
    assert "unexpected: blocks.2." in str(error.value)
    assert "blocks.0.norm1.weight: (48,) torch.float32, not (16,) torch.float32" in str(error.value)
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())


def test_missing_tensors_are_listed(pretrained):
    weights = read_encoder(pretrained[0], tiny_config())
    short = {k: v for k, v in weights.tensors.items() if k != "norm.bias"}
    encoder = build_encoder(tiny_config().model, tiny_config().data)
    with pytest.raises(ArtefactError, match=r"missing: norm\.bias$"):
        hand_over(encoder, EncoderWeights(weights.source, short, ()))


def test_a_file_without_an_encoder(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(ArtefactError, match="holds no encoder; its tensors are x"):
        read_encoder(tmp_path / "w.safetensors", tiny_config())


def test_report(pretrained):
    weights = read_encoder(pretrained[0], tiny_config())
    text = report(weights, 1234)
    encoder: nn.Module = pretrained[1].network.encoder
    numbers = sum(p.numel() for p in encoder.parameters())
    assert str(pretrained[0]) in text
    assert f"{len(encoder.state_dict())} tensors ({numbers:,} numbers) loaded" in text
    assert f"left behind: {len(weights.left_out)} of momentum_network, network" in text
    assert "1,234 numbers of the decoder" in text
