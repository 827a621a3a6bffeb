"""Somebody else's models are called what they are; the authors' weights are found under whatever wraps their names."""

import io
import json
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from epg.checkpoint.state_dict import read_state_dict
from epg.cli import main
from tests.generators import save_run
from tests.helpers import GOLDEN, golden_recipe, tiny_config
from tests.training.test_loop import tiny

X = torch.zeros(1, 1, 32)
FOLDERS = {
    "a transformers model of type dinov2": ("config.json", {"model_type": "dinov2", "architectures": ["Dinov2Model"]}),
    "a transformers model (CLIPModel)": ("config.json", {"architectures": ["CLIPModel"]}),
    "a diffusers pipeline (DiTPipeline)": ("model_index.json", {"_class_name": "DiTPipeline"}),
    "a diffusers model (UNet2DModel)": ("config.json", {"_class_name": "UNet2DModel"}),
    "a timm model (vit_base)": ("config.json", {"architecture": "vit_base", "pretrained_cfg": {}}),
}
FILES = {
    "a MoCo v3 checkpoint": {"state_dict": {"module.base_encoder.cls_token": X}, "epoch": 3, "arch": "vit_base"},
    "a MoCo checkpoint": {"state_dict": {"module.encoder_q.conv1.weight": X}, "optimizer": {"state": {}}},
    "a DINO checkpoint": {"student": {"module.backbone.x": X}, "teacher": {"backbone.x": X}, "epoch": 1},
    "a transformers model": {"embeddings.cls_token": X},
    "a convolutional network of torchvision": {"layer1.0.conv1.weight": X},
    "a ViT with one token": {"pos_embed": torch.zeros(1, 197, 8), "blocks.0.attn.qkv.weight": X},
}


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("called", FOLDERS)
def test_folders(called: str, weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, content = FOLDERS[called]
    (tmp_path / name).write_text(json.dumps(content))
    save_file({"embeddings.cls_token": X}, tmp_path / weights)
    (tmp_path / "r.yaml").write_text(tiny("diffusion").to_yaml())
    for command in (
        ["finetune", str(tmp_path / "r.yaml"), "--encoder", str(tmp_path), "--out", str(tmp_path / "run")],
        ["sample", str(tmp_path), "--out", str(tmp_path / "s")],
        ["convert", str(tmp_path), "--out", str(tmp_path / "c")],
    ):
        assert main(command) == 77, command
        told = capsys.readouterr().err
        assert called.removeprefix("a diffusers pipeline") in told, told
        assert "format None" not in told


@pytest.mark.parametrize("called", FILES)
def test_files(called: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(FILES[called], tmp_path / "vit.pth.tar")
    (tmp_path / "r.yaml").write_text(tiny("diffusion").to_yaml())
    encoder = ["--encoder", str(tmp_path / "vit.pth.tar"), "--out", str(tmp_path / "run")]
    for command in (
        ["finetune", str(tmp_path / "r.yaml"), *encoder],
        ["convert", str(tmp_path / "vit.pth.tar"), "--out", str(tmp_path / "c")],
    ):
        assert main(command) == 77
        assert called in capsys.readouterr().err


WRAPS = {
    "module": lambda w: {f"module.{k}": t for k, t in w.items()},
    "compiled": lambda w: {f"_orig_mod.{k}": t for k, t in w.items()},
    "compiled DDP": lambda w: {f"_orig_mod.module.{k}": t for k, t in w.items()},
    "DDP of compiled of DDP": lambda w: {f"module._orig_mod.module.{k}": t for k, t in w.items()},
    "averaged": lambda w: {"n_averaged": torch.tensor(7), **{f"module.{k}": t for k, t in w.items()}},
    "averaged DDP": lambda w: {"module.n_averaged": torch.tensor(7), **{f"module.module.{k}": t for k, t in w.items()}},
    "compiled blocks": lambda w: {k.replace(".attn.", "._orig_mod.attn."): t for k, t in w.items()},
    "in a checkpoint": lambda w: {"model": {f"module.{k}": t for k, t in w.items()}, "step": 5, "args": {"lr": 1e-4}},
}


@pytest.mark.parametrize("wrap", WRAPS)
def test_names_are_unwrapped(wrap: str, tmp_path: Path) -> None:
    weights: dict[str, Tensor] = load_file(GOLDEN / "official_epg_weights.safetensors")
    torch.save(WRAPS[wrap](weights), tmp_path / "nnet_ema.pth")
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(golden_recipe("diffusion")))
    options = ["--recipe", str(tmp_path / "r.yaml"), "--no-samples", "--device", "cpu"]
    assert main(["convert", str(tmp_path / "nnet_ema.pth"), "--out", str(tmp_path / "out"), *options]) == 0
    found = read_state_dict(tmp_path / "nnet_ema.pth")
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)


def test_two_state_dicts_are_not_chosen_between(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": {"a": X}, "ema": {"a": X}}, tmp_path / "both.pth")
    assert main(["convert", str(tmp_path / "both.pth"), "--out", str(tmp_path / "out")]) == 77
    assert "holds several state dicts (model, ema)" in capsys.readouterr().err


@pytest.mark.parametrize("out", [".", "..", "{here}", "{here}/"])
def test_the_folder_one_is_in_is_not_replaced(out: str, tmp_path: Path, monkeypatch, capsys) -> None:
    run = save_run(tmp_path / "run", tiny_config())
    (tmp_path / "a" / "here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "here")
    out = out.format(here=tmp_path / "a" / "here")
    for to in ("pipeline", "weights"):
        assert main(["convert", str(run), "--to", to, "--out", out, "--no-samples", "--device", "cpu"]) == 74
        assert f"--out {Path(out)}: this command runs inside of it" in capsys.readouterr().err
    assert Path.cwd() == tmp_path / "a" / "here"


@pytest.mark.parametrize("text", ["", "{", '{"source": 3}', "[]"])
def test_a_torn_record_of_the_handover_is_named(text: str, tmp_path: Path, capsys) -> None:
    from epg.checkpoint.handover import handed_over
    from epg.errors import ArtefactError

    (tmp_path / "handover.json").write_text(text)
    with pytest.raises(ArtefactError, match=r"handover\.json: damaged"):
        handed_over(tmp_path)


def test_a_terminal_that_knows_few_letters_costs_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, printed = tmp_path / "Größe±", io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding="ascii", write_through=True))
    run = save_run(tmp_path / "run", tiny_config())
    assert main(["sample", str(run), "--out", str(out), "--count", "2", "--device", "cpu"]) == 0
    assert rb"Gr\xf6\xdfe\xb1" in printed.getvalue()
    assert (out / "grid.png").is_file()
