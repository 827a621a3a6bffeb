import json
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from epg.checkpoint.official import EPG_NAMES, RCM_NAMES, from_release, recognise, rename, restore, to_release
from epg.checkpoint.state_dict import read_state_dict
from epg.config.recipe import recipe_names, run_config
from epg.config.settings import RunConfig
from epg.errors import ArtefactError
from epg.networks.build import build_epg, build_rcm
from tests.helpers import GOLDEN, golden_recipe

EPG_FILE, RCM_FILE = GOLDEN / "official_epg_weights.safetensors", GOLDEN / "official_rcm_weights.safetensors"


@pytest.fixture
def recipes(tmp_path: Path) -> dict[str, str]:
    """Recipe files of the golden networks, by stage."""
    files = {}
    for stage in ("pretraining", "diffusion", "consistency"):
        files[stage] = str(tmp_path / f"golden-{stage}.yaml")
        Path(files[stage]).write_text(json.dumps(golden_recipe(stage)))
    return files


def converted(file: Path, recipe: str) -> tuple[RunConfig, dict[str, Tensor]]:
    weights = read_state_dict(file)
    config = recognise(weights, file, None, recipe)
    return config, from_release(weights, config, file)


# Names ----------------------------------------------------------------------------------------------------------------


def test_every_tensor_is_used_once_and_comes_back(recipes):
    for file, names, stage, build in (
        (EPG_FILE, EPG_NAMES, "diffusion", build_epg),
        (RCM_FILE, RCM_NAMES, "pretraining", build_rcm),
    ):
        weights = load_file(file)
        config, ours = converted(file, recipes[stage])
        network = build(config.model, config.data)
        network.load_state_dict(ours)
        assert sorted(rename(key, names) for key in weights) == sorted(network.state_dict())
        back = to_release(network.state_dict(), names)
        assert back.keys() == weights.keys()
        assert all(torch.equal(back[key], value) for key, value in weights.items())


def test_names_of_every_recipe_come_back():
    for name in recipe_names():
        for stage, names in (("pretraining", RCM_NAMES), ("diffusion", EPG_NAMES)):
            config = run_config(name, stage)
            model = config.model.model_copy(update={"num_classes": 7})
            with torch.device("meta"):
                keys = (build_rcm if stage == "pretraining" else build_epg)(model, config.data).state_dict().keys()
            theirs = [restore(key, names) for key in keys]
            assert len(set(theirs)) == len(keys)
            assert [rename(key, names) for key in theirs] == list(keys)


# Recognising ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["pretraining", "diffusion", "consistency"])
@pytest.mark.parametrize("name", ["imagenet256-s", "imagenet256-l", "imagenet256-xl", "imagenet256-g", "imagenet512-l"])
def test_the_paper_s_networks_are_recognised(name, stage):
    """Heads come from the recipe: no tensor shows them."""
    config = run_config(name, stage)
    with torch.device("meta"):
        network = (build_rcm if stage == "pretraining" else build_epg)(config.model, config.data)
    found = recognise(
        to_release(network.state_dict(), RCM_NAMES if stage == "pretraining" else EPG_NAMES),
        "file",
        None if stage == "diffusion" else stage,
        None,
    )
    assert found.stage == stage
    assert found.model.encoder == config.model.encoder
    assert found.data.image_size == config.data.image_size
    if stage != "pretraining":
        assert found == config


def test_classes_are_those_of_the_file(recipes):
    weights = load_file(EPG_FILE)
    assert recognise(weights, EPG_FILE, None, recipes["diffusion"]).model.num_classes == 10
    weights["class_embed.weight"] = torch.zeros(4, 48)
    assert recognise(weights, EPG_FILE, None, recipes["diffusion"]).model.num_classes == 3
    del weights["class_embed.weight"]
    config = recognise(weights, EPG_FILE, None, recipes["diffusion"])
    assert config.model.num_classes == 0
    assert from_release(weights, config, EPG_FILE)


def test_no_recipe_has_the_architecture():
    with pytest.raises(ArtefactError, match=r"no recipe has this architecture(.|\n)*model\.encoder\.width: 48"):
        recognise(load_file(EPG_FILE), EPG_FILE, None, None)


def test_another_recipe_is_refused_with_every_difference():
    with pytest.raises(ArtefactError, match="of another architecture than --recipe digits") as error:
        recognise(load_file(EPG_FILE), EPG_FILE, None, "digits")
    assert "data.image_size: 32 in the file, 8 in digits" in str(error.value)
    assert "model.decoder.width: 80 in the file, 96 in digits" in str(error.value)


def test_an_encoder_is_no_generator_and_a_generator_no_encoder(recipes):
    with pytest.raises(ArtefactError, match="holds an encoder"):
        recognise(load_file(RCM_FILE), RCM_FILE, "diffusion", None)
    with pytest.raises(ArtefactError, match="holds a generator"):
        recognise(load_file(EPG_FILE), EPG_FILE, "pretraining", None)
    with pytest.raises(ArtefactError, match="has no pretraining"):
        recognise(load_file(RCM_FILE), RCM_FILE, None, recipes["diffusion"])


# Every key accounted for ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["blocks.1.attn.qkv.weight", "decoder_blocks.2.skip_norm.bias", "cls_token"])
def test_missing_key(recipes, key):
    weights = load_file(EPG_FILE)
    config = recognise(weights, EPG_FILE, None, recipes["diffusion"])
    del weights[key]
    with pytest.raises(ArtefactError, match=f"missing: {rename(key, EPG_NAMES)}") as error:
        from_release(weights, config, "w.safetensors")
    assert "w.safetensors" in str(error.value)


@pytest.mark.parametrize("key", ["pos_embed", "patch_embed.proj.weight", "out_norm.weight", "blocks.0.mlp.fc1.weight"])
@pytest.mark.parametrize("value", [None, torch.zeros(()), torch.zeros(0, 3)])
def test_a_key_that_tells_a_size(key, value):
    weights = load_file(EPG_FILE) | ({} if value is None else {key: value})
    if value is None:
        del weights[key]
    with pytest.raises(ArtefactError, match=f"no tensor '{key}'"):
        recognise(weights, "w.safetensors", None, None)


def test_extra_key_and_wrong_shape(recipes):
    weights = load_file(EPG_FILE)
    config = recognise(weights, EPG_FILE, None, recipes["diffusion"])
    with pytest.raises(ArtefactError, match=r"unexpected: surplus\.weight"):
        from_release({**weights, "surplus.weight": torch.zeros(1)}, config, "w")
    with pytest.raises(ArtefactError, match=r"encoder\.norm\.weight: \(5,\)"):
        from_release({**weights, "norm.weight": torch.zeros(5)}, config, "w")


def test_names_of_a_wrapped_network(tmp_path):
    weights = load_file(RCM_FILE)
    torch.save({f"module.{key}": value for key, value in weights.items()}, tmp_path / "nnet.pth")
    assert read_state_dict(tmp_path / "nnet.pth").keys() == weights.keys()


# Files ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extension", ["pth", "pt", "bin"])
def test_torch_files_load_equal_to_safetensors(tmp_path, extension):
    expected = load_file(RCM_FILE)
    content = OrderedDict(expected)
    content._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]  # as a module's state dict has
    torch.save(content, tmp_path / f"w.{extension}")
    found = read_state_dict(tmp_path / f"w.{extension}")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[k], expected[k]) for k in expected)


def test_missing_file(tmp_path):
    with pytest.raises(ArtefactError, match="no such file"):
        read_state_dict(tmp_path / "absent.safetensors")


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
@pytest.mark.parametrize("content", [b"", b"not weights at all", b"\x89PNG\r\n\x1a\n" + bytes(100)])
def test_wrong_file_type(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ArtefactError, match="damaged") as error:
        read_state_dict(tmp_path / name)
    assert name in str(error.value)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_truncated_file(tmp_path, name):
    weights = load_file(RCM_FILE)
    save_file(weights, tmp_path / name) if name.endswith("safetensors") else torch.save(weights, tmp_path / name)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-100])
    with pytest.raises(ArtefactError, match=r"cannot be read|damaged"):
        read_state_dict(tmp_path / name)


def test_safetensors_under_another_name_is_refused(tmp_path):
    (tmp_path / "w.pth").write_bytes(RCM_FILE.read_bytes())
    with pytest.raises(ArtefactError, match="cannot be read"):
        read_state_dict(tmp_path / "w.pth")


class Canary:
    """Unpickling this makes a folder."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        import os

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


@pytest.mark.parametrize("content", [[torch.zeros(1)], {"model": {"w": 3}}, {"step": 3}, torch.zeros(2)])
def test_not_a_state_dict(tmp_path, content):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ArtefactError, match="not a state dict"):
        read_state_dict(tmp_path / "w.pth")


def test_numbers_that_are_not_finite(tmp_path):
    torch.save({"w": torch.tensor([1.0, float("nan")])}, tmp_path / "w.pth")
    with pytest.raises(ArtefactError, match="w holds values that are not finite"):
        read_state_dict(tmp_path / "w.pth")


def test_a_zip_bomb_is_refused_before_it_is_read(tmp_path):
    torch.save({"w": torch.zeros(2**22)}, tmp_path / "w.pth")
    with zipfile.ZipFile(tmp_path / "w.pth") as old, zipfile.ZipFile(tmp_path / "bomb.pth", "w", 8) as bomb:
        for member in old.infolist():
            bomb.writestr(member.filename, old.read(member))
    assert (tmp_path / "bomb.pth").stat().st_size < 2**17  # of 16 MiB
    with pytest.raises(ArtefactError, match="claims more than it holds"):
        read_state_dict(tmp_path / "bomb.pth")
    assert torch.load(tmp_path / "bomb.pth", weights_only=True)["w"].numel() == 2**22  # what it would have cost


def test_a_tensor_larger_than_its_file_is_refused(tmp_path):
    torch.save({"w": torch.zeros(1).expand(2**40)}, tmp_path / "w.pth")
    with pytest.raises(ArtefactError, match="w claims more numbers than the file holds"):
        read_state_dict(tmp_path / "w.pth")
