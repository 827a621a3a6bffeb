"""Exports and pipeline folders: what was changed by hand or damaged is refused by name, and can be accepted by name."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from epg import load
from epg.cli import main
from epg.errors import ArtefactError
from tests.generators import save_export
from tests.helpers import tiny_config
from tests.pipeline.common import python, tiny_pipeline

WEIGHTS = {"export": "model.safetensors", "pipeline": "transformer/diffusion_pytorch_model.safetensors"}
SETTINGS = {"export": "config.json", "pipeline": "model_index.json"}
SIGMA = {"export": ("config", "noise", "sigma_max"), "pipeline": ("noise", "sigma_max")}
SHIFT = {"export": ("config", "noise", "shift"), "pipeline": ("noise", "shift")}


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("sealed")
    save_export(place / "export", tiny_config())
    tiny_pipeline().save_pretrained(place / "pipeline")
    return place


@pytest.fixture(params=["export", "pipeline"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder(kind: str, originals: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(originals / kind, tmp_path / kind))


def edit(file: Path, keys: tuple[str, ...], value: object = None) -> None:
    """Sets a setting, or takes it out, as one does with an editor."""
    content = json.loads(file.read_text())
    inner = content
    for key in keys[:-1]:
        inner = inner[key]
    if value is None:
        del inner[keys[-1]]
    else:
        inner[keys[-1]] = value
    file.write_text(json.dumps(content, indent=4))


def flip(file: Path, place: int = -5) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def test_intact(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(folder)]) == 0
    assert "intact" in capsys.readouterr().out
    load(folder)


def test_another_layout_is_no_change(kind: str, folder: Path) -> None:
    file = folder / SETTINGS[kind]
    content = json.loads(
        file.read_text(), parse_float=lambda text: int(float(text)) if float(text) % 1 == 0 else float(text)
    )
    file.write_text(json.dumps(content, sort_keys=True))
    assert main(["verify", str(folder)]) == 0


@pytest.mark.parametrize("taken_out", [False, True])
def test_a_change_by_hand_is_named_refused_and_accepted_by_name(
    kind: str, folder: Path, taken_out: bool, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    keys = SHIFT[kind] if taken_out and kind == "export" else SIGMA[kind]
    edit(folder / SETTINGS[kind], keys, None if taken_out else 90.0)
    assert main(["verify", str(folder)]) == 77
    told = capsys.readouterr()
    assert "changed by hand" in told.out
    wanted = f"{'.'.join(keys)}: {'taken out' if taken_out else 'now 90.0'}"
    assert wanted in told.err
    assert SETTINGS[kind] in told.err
    sample = ["sample", str(folder), "--out", str(tmp_path / "s"), "--count", "1", "--device", "cpu"]
    assert main(sample) == 77
    told = capsys.readouterr().err
    assert wanted in told
    assert "epg verify FOLDER --reseal" in told
    assert main(["verify", str(folder), "--reseal"]) == 0
    assert wanted in capsys.readouterr().out
    assert main(["verify", str(folder)]) == 0
    assert main(sample) == 0
    if not taken_out:
        assert float(load(folder).sigmas()[0]) == pytest.approx(90.0)


def test_damage_is_called_damage(kind: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip(folder / WEIGHTS[kind])
    assert main(["verify", str(folder)]) == 77
    told = capsys.readouterr()
    assert "damaged" in told.out
    assert f"{folder / WEIGHTS[kind]}: other content than its seal: damaged, or replaced" in told.err
    with pytest.raises(ArtefactError, match="other content than its seal"):
        load(folder).sample(torch.tensor([0]))


def test_a_torn_configuration(kind: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = folder / SETTINGS[kind]
    file.write_bytes(file.read_bytes()[:-40])
    assert main(["verify", str(folder)]) == 77
    assert f"{file}: damaged" in capsys.readouterr().err
    assert main(["verify", str(folder), "--reseal"]) == 77  # nothing to accept


def test_a_seal_that_is_gone_or_wrong(kind: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = folder / SETTINGS[kind]
    content = json.loads(file.read_text())
    content["_seal"]["settings"]["epg"] = "0" * 16
    file.write_text(json.dumps(content))
    assert main(["verify", str(folder)]) == 77
    assert "its seal is damaged" in capsys.readouterr().err
    del content["_seal"]
    file.write_text(json.dumps(content))
    assert main(["verify", str(folder)]) == 77
    assert "its seal is missing" in capsys.readouterr().err


def test_missing_tensors_are_named(kind: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = load_file(folder / WEIGHTS[kind])
    save_file({k: v for k, v in weights.items() if k != "encoder.cls_token"}, folder / WEIGHTS[kind])
    assert main(["verify", str(folder), "--reseal"]) == (77 if kind == "pipeline" else 0)
    told = capsys.readouterr()
    if kind == "export":
        with pytest.raises(ArtefactError, match=r"missing: encoder\.cls_token"):
            load(folder)
    else:
        assert "missing: encoder.cls_token" in told.err


def test_every_file_of_a_pipeline_is_read(originals: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file in sorted((originals / "pipeline").rglob("*")):
        if file.is_file():
            folder = Path(shutil.copytree(originals / "pipeline", tmp_path / "copy", dirs_exist_ok=True))
            copy = folder / file.relative_to(originals / "pipeline")
            flip(copy, copy.stat().st_size // 2)
            assert main(["verify", str(folder)]) == 77, copy
            assert copy.name in capsys.readouterr().err


def test_checkpoints_are_not_resealed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.generators import save_run

    run = save_run(tmp_path / "run", tiny_config())
    assert main(["verify", str(run), "--reseal"]) == 2
    assert "for an export or a pipeline folder" in capsys.readouterr().err


def test_plain_diffusers_refuses_too(originals: Path, tmp_path: Path) -> None:
    """With the code in the folder, without this package: a flipped bit, a change by hand, missing tensors."""
    copies = {
        name: Path(shutil.copytree(originals / "pipeline", tmp_path / name)) for name in ("flip", "edit", "lacks")
    }
    flip(copies["flip"] / WEIGHTS["pipeline"])
    edit(copies["edit"] / "model_index.json", SIGMA["pipeline"], 90.0)
    file = copies["lacks"] / WEIGHTS["pipeline"]
    save_file({k: v for k, v in load_file(file).items() if "cls_token" not in k}, file, metadata={"format": "pt"})
    code = f"""
import sys; sys.modules["epg"] = None
import torch
from diffusers import AutoModel, DiffusionPipeline
for name in {sorted(copies)}:
    try:
        DiffusionPipeline.from_pretrained(f"{tmp_path}/{{name}}", trust_remote_code=True)
        print(name, "LOADED")
    except Exception as error:
        print(name, type(error).__name__, str(error).replace(chr(10), " "))
good = {str(originals / "pipeline")!r}
print("auto", type(AutoModel.from_pretrained(good + "/transformer", trust_remote_code=True)).__name__)
print("auto", type(AutoModel.from_pretrained(good, subfolder="transformer", trust_remote_code=True)).__name__)
kind = type(DiffusionPipeline.from_pretrained(good, trust_remote_code=True).transformer)
more = kind.from_pretrained(good, subfolder="transformer", num_classes=9, ignore_mismatched_sizes=True)
print("resized", tuple(more.class_embedding.weight.shape), bool(more.class_embedding.weight.abs().max() < 1))
"""
    lines = python(code, tmp_path / "home").splitlines()
    assert any(line.startswith("flip ArtefactError") and "other content than its seal" in line for line in lines), lines
    assert any(line.startswith("edit ArtefactError") and "noise.sigma_max: now 90.0" in line for line in lines), lines
    assert any(line.startswith("lacks ArtefactError") and "lack encoder.cls_token" in line for line in lines), lines
    assert lines.count("auto EPGModel") == 2
    assert "resized (10, 16) True" in lines
