import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from epg.errors import ArtefactError
from epg.official import EPG_NAMES, RCM_NAMES, load_epg, load_rcm, read_state_dict, rename
from tests.helpers import GOLDEN

EPG_FILE, RCM_FILE = GOLDEN / "official_epg_weights.safetensors", GOLDEN / "official_rcm_weights.safetensors"
RCM_SIZES = {"image_size": 32, "patch_size": 4, "encoder_heads": 3}
SIZES = {**RCM_SIZES, "decoder_heads": 5}


def test_generator_is_read_from_its_tensors():
    network = load_epg(EPG_FILE, **SIZES)
    assert (len(network.encoder.blocks), network.encoder.width, network.decoder.width) == (3, 48, 80)
    assert (network.num_classes, network.encoder.channels) == (10, 3)


def test_every_tensor_of_the_release_is_used_once():
    for file, names, network in (
        (EPG_FILE, EPG_NAMES, load_epg(EPG_FILE, **SIZES)),
        (RCM_FILE, RCM_NAMES, load_rcm(RCM_FILE, **RCM_SIZES)),
    ):
        weights, state = load_file(file), network.state_dict()
        assert sorted(rename(key, names) for key in weights) == sorted(state)
        assert all(torch.equal(state[rename(key, names)], value) for key, value in weights.items())


@pytest.mark.parametrize("changes", [{"image_size": 64}, {"patch_size": 8}, {"image_size": 16, "patch_size": 2}])
def test_wrong_image_size(changes):
    with pytest.raises(ArtefactError, match="patches of 4 pixels and 64 of them, but image size"):
        load_epg(EPG_FILE, **{**SIZES, **changes})


@pytest.mark.parametrize(
    "key", ["blocks.1.attn.qkv.weight", "decoder_blocks.2.skip_norm.bias", "cls_token", "norm.bias"]
)
def test_missing_key(tmp_path, key):
    weights = load_file(EPG_FILE)
    del weights[key]
    save_file(weights, tmp_path / "w.safetensors")
    with pytest.raises(ArtefactError, match=f"missing {rename(key, EPG_NAMES)}") as error:
        load_epg(tmp_path / "w.safetensors", **SIZES)
    assert "w.safetensors" in str(error.value)


@pytest.mark.parametrize("key", ["pos_embed", "patch_embed.proj.weight", "out_norm.weight"])
def test_missing_key_that_tells_a_size(tmp_path, key):
    weights = load_file(EPG_FILE)
    del weights[key]
    save_file(weights, tmp_path / "w.safetensors")
    with pytest.raises(ArtefactError, match=f"no tensor '{key}'"):
        load_epg(tmp_path / "w.safetensors", **SIZES)


def test_missing_blocks(tmp_path):
    weights = {k: v for k, v in load_file(RCM_FILE).items() if not k.startswith("blocks.")}
    save_file(weights, tmp_path / "w.safetensors")
    with pytest.raises(ArtefactError, match=r"w\.safetensors"):
        load_rcm(tmp_path / "w.safetensors", **RCM_SIZES)


def test_extra_key(tmp_path):
    save_file({**load_file(EPG_FILE), "surplus.weight": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(ArtefactError, match=r"unexpected surplus\.weight"):
        load_epg(tmp_path / "w.safetensors", **SIZES)


def test_wrong_shape(tmp_path):
    save_file({**load_file(EPG_FILE), "norm.weight": torch.zeros(5)}, tmp_path / "w.safetensors")
    with pytest.raises(ArtefactError, match=r"encoder\.norm\.weight is \(5,\), not \(48,\)"):
        load_epg(tmp_path / "w.safetensors", **SIZES)


def test_an_encoder_is_no_generator_and_a_generator_no_encoder():
    with pytest.raises(ArtefactError, match="out_norm"):
        load_epg(RCM_FILE, **SIZES)
    with pytest.raises(ArtefactError, match="projection_head"):
        load_rcm(EPG_FILE, **RCM_SIZES)


@pytest.mark.parametrize("extension", ["pth", "pt", "bin"])
def test_torch_files_load_equal_to_safetensors(tmp_path, extension):
    file = tmp_path / f"w.{extension}"
    torch.save(load_file(RCM_FILE), file)
    a, b = load_rcm(file, **RCM_SIZES).state_dict(), load_rcm(RCM_FILE, **RCM_SIZES).state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_missing_file(tmp_path):
    with pytest.raises(ArtefactError, match="no such file"):
        read_state_dict(tmp_path / "absent.safetensors")


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
@pytest.mark.parametrize("content", [b"", b"not weights at all", b"\x89PNG\r\n\x1a\n" + bytes(100)])
def test_wrong_file_type(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ArtefactError, match="cannot be read as a state dict") as error:
        read_state_dict(tmp_path / name)
    assert name in str(error.value)


def test_truncated_file(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(RCM_FILE.read_bytes()[:-100])
    with pytest.raises(ArtefactError, match="cannot be read"):
        read_state_dict(tmp_path / "w.safetensors")


def test_safetensors_under_another_name_is_refused(tmp_path):
    shutil.copy(RCM_FILE, tmp_path / "w.pth")
    with pytest.raises(ArtefactError, match="cannot be read"):
        read_state_dict(tmp_path / "w.pth")


class Canary:
    """Unpickling this makes a folder."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("old_format", [False, True])
def test_code_in_a_pickle_does_not_run(tmp_path, old_format):
    canary, file = tmp_path / "canary", tmp_path / "w.pth"
    torch.save(
        {"weight": torch.zeros(1), "x": Canary(str(canary))}, file, _use_new_zipfile_serialization=not old_format
    )
    with pytest.raises(ArtefactError, match="cannot be read as a state dict"):
        read_state_dict(file)
    assert not canary.exists()
    torch.load(file, weights_only=False)
    assert canary.is_dir()  # the trap was armed


@pytest.mark.parametrize("content", [[torch.zeros(1)], {"model": {"w": torch.zeros(1)}}, {"step": 3}, torch.zeros(2)])
def test_not_a_state_dict(tmp_path, content):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ArtefactError, match="not a state dict"):
        read_state_dict(tmp_path / "w.pth")
