"""Nothing is removed or overwritten that this program did not demonstrably write: every verb that writes, run twice."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from epg.checkpoint import checkpoint, export, saving
from epg.cli import main
from epg.storage.locks import held
from tests.data.photos import photo_folder
from tests.generators import lively_epg, save_run
from tests.helpers import run_state, tiny_config
from tests.training.test_loop import tiny

# What somebody may keep in a folder, with names as close to ours as one finds in the wild.
NAMES = (
    "notes.txt",
    ".cache.tmp",
    ".000001.png.tmp",
    ".export.backup",
    ".DIR.backup",
    "x.tmp",
    "prepare-list.lock",
    "model.bak",
    "step-best/model.safetensors",
    "step-5/model.safetensors",
    "checkpoints/step-best/notes.txt",
    "checkpoints/step-1/cat.png",
    "checkpoints/step-00000002-copy/model.safetensors",
    "checkpoints/.step-00000003.tmp/mine.txt",
    "evaluations/step-notes.json",
    "parts/mine.txt",
)
BESIDE = (".out.tmp", ".out.rest", ".out.backup/mine.txt", "out.replaced/mine.txt", "out.old", ".out.epg-mine.tmp")


def plant(folder: Path, names: tuple[str, ...]) -> dict[Path, bytes]:
    planted = {folder / name: f"mine: {name}".encode() for name in names}
    for file, content in planted.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return planted


def untouched(planted: dict[Path, bytes]) -> bool:
    return all(file.is_file() and file.read_bytes() == content for file, content in planted.items())


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of three kinds, a folder of pictures, a recipe."""
    place = tmp_path_factory.mktemp("inputs")
    save_run(place / "diffusion", tiny_config(training={"ema": [0.9]}))
    config = tiny_config(training={"ema": [], "power_ema": [0.05, 0.1]})
    for step in (5, 10):
        weights = {f"power-{width}": lively_epg(config).state_dict() for width in (0.05, 0.1)}
        saving.save(place / "power" / "checkpoints", step, {"model": {}, **weights}, run_state(config), keep=2)
    one_step = tiny_config("consistency")
    weights = {"ema-0.9": lively_epg(one_step).state_dict()}
    export.write(place / "one-step", 10, weights, run_state(one_step, ["cat", "dog", "emu"]))
    photo_folder(place / "photos")
    (place / "recipe.yaml").write_text(tiny("diffusion", training={"steps": 6, "checkpoint_every": 1}).to_yaml())
    return place


TRAIN = ["finetune", "{in}/recipe.yaml", "--from-scratch", "--out", "{out}"]
VERBS: dict[str, list[str]] = {
    "train": TRAIN,
    "sample": ["sample", "{in}/diffusion", "--out", "{out}", "--count", "3", "--device", "cpu"],
    "prepare": ["prepare", "{in}/photos", "{out}", "--image-size", "16", "--workers", "0"],
    "ema": ["ema", "{in}/power", "--sigma-rel", "0.08", "--out", "{out}"],
    "pipeline": ["convert", "{in}/diffusion", "--out", "{out}", "--no-samples", "--device", "cpu"],
    "weights": ["convert", "{in}/diffusion", "--to", "weights", "--out", "{out}", "--no-samples", "--device", "cpu"],
    "release": ["convert", "{in}/diffusion", "--to", "release", "--out", "{out}/nnet.pth"],
    "onnx": ["convert", "{in}/one-step", "--to", "onnx", "--out", "{out}/one.onnx"],
}


def run(name: str, inputs: Path, out: Path) -> int:
    return main([argument.format(**{"in": inputs, "out": out}) for argument in VERBS[name]])


@pytest.mark.parametrize("name", [name for name in VERBS if name != "onnx"])
def test_what_lies_in_and_beside_an_output_folder_stays(name: str, inputs: Path, tmp_path: Path) -> None:
    """Before the first time, and before it goes on where it was or is done again."""
    out = tmp_path / "place" / "out"
    beside = plant(out.parent, BESIDE)
    inside = plant(out, NAMES)
    first = run(name, inputs, out)
    assert untouched(inside | beside), name
    shutil.rmtree(out)
    assert run(name, inputs, out) == 0
    inside = plant(out, NAMES)
    again = run(name, inputs, out)
    assert untouched(inside | beside), name
    refuses = {"prepare", "ema", "pipeline", "weights"}
    assert (first == 0) == (name not in refuses), name
    assert (again == 0) == (name not in refuses - {"prepare"} | {"release"}), name
    assert not [path for path in out.parent.iterdir() if ".lock" in path.name]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("onnx", "one.onnx.data"),
        ("onnx", "one.onnx"),
        ("release", "nnet.pth"),
        ("train", "config.yaml"),
        ("train", "export/model.safetensors"),
        ("train", "export/config.json"),
        ("train", "log.jsonl"),
        ("sample", "grid.png"),
        ("sample", "samples.json"),
        ("sample", "000001.png"),
        ("prepare", "manifest.json"),
        ("pipeline", "model_index.json"),
        ("weights", "config.json"),
        ("ema", "model.safetensors"),
    ],
)
def test_what_has_the_name_of_an_output_stays(name: str, file: str, inputs: Path, tmp_path: Path, capsys) -> None:
    planted = plant(tmp_path / "out", (file,))
    (tmp_path / "out" / file).write_text('{"mine": 1}')
    planted = {path: path.read_bytes() for path in planted}
    assert run(name, inputs, tmp_path / "out") in (2, 74, 77)
    assert untouched(planted)
    assert Path(file).parts[0] in capsys.readouterr().err


@pytest.mark.parametrize("place", ["diffusion", "diffusion/checkpoints", "one-step", "set", "pipeline"])
def test_no_pictures_among_other_things_of_ours(place: str, inputs: Path, tmp_path: Path, capsys) -> None:
    if place in ("pipeline", "set"):
        assert run({"set": "prepare"}.get(place, place), inputs, tmp_path / place) == 0
    else:
        shutil.copytree(inputs / place, tmp_path / place)
    before = sorted((tmp_path / place).rglob("*"))
    assert run("sample", inputs, tmp_path / place) == 2
    assert f"such as {tmp_path / place / 'samples'}" in capsys.readouterr().err
    assert sorted((tmp_path / place).rglob("*")) == before
    assert run("sample", inputs, tmp_path / place / "samples") == 0


def test_a_card_that_somebody_rewrote_stays(inputs: Path, tmp_path: Path) -> None:
    assert run("pipeline", inputs, tmp_path / "out") == 0
    planted = plant(tmp_path / "out", ("README.md",))
    assert run("pipeline", inputs, tmp_path / "out") == 74
    assert untouched(planted)
    assert main(["verify", str(tmp_path / "out")]) == 0  # but it is no damage


def test_pruning_removes_our_checkpoints_and_nothing_else(tmp_path: Path) -> None:
    """A checkpoint that somebody added to, or copied under another name, is theirs."""
    folder, tensors = tmp_path / "checkpoints", {"model": {"a": torch.zeros(3)}}
    for step in (1, 2, 3):
        saving.save(folder, step, tensors, run_state(tiny_config()), keep=5)
    shutil.copytree(folder / "step-00000003", folder / "step-00000000")  # a copy, under another step's name
    noted = plant(folder, ("step-00000001/notes.txt",))
    for step in (4, 5):
        saving.save(folder, step, tensors, run_state(tiny_config()), keep=2)
    assert {path.name for path in folder.iterdir()} == {f"step-{step:08d}" for step in (0, 1, 4, 5)}
    assert untouched(noted)


def test_somebodys_folder_where_a_checkpoint_belongs_is_renamed(tmp_path: Path) -> None:
    plant(tmp_path, ("step-00000002/cat.png", "step-00000002/model.safetensors"))
    with pytest.warns(UserWarning, match="renamed to step-00000002.not-ours-"):
        saving.save(tmp_path, 2, {"model": {"a": torch.zeros(3)}}, run_state(tiny_config()), keep=2)
    (aside,) = tmp_path.glob("step-00000002.not-ours-*")
    assert (aside / "cat.png").read_text() == "mine: step-00000002/cat.png"
    assert checkpoint.read(tmp_path / "step-00000002").step == 2


def test_notes_in_an_export_move_with_it(inputs: Path, tmp_path: Path) -> None:
    assert run("train", inputs, tmp_path / "run") == 0
    noted = plant(tmp_path / "run" / "export", ("notes.txt", "sub/notes.txt"))
    longer = [a.format(**{"in": inputs, "out": tmp_path / "run"}) for a in TRAIN]
    assert main([*longer, "--training.steps", "8", "--override", "training.steps"]) in (0, 2)
    export.write(tmp_path / "run" / "export", 9, {"ema-0.9": {"a": torch.zeros(2)}}, run_state(tiny_config()))
    assert untouched(noted)
    assert export.read(tmp_path / "run" / "export").step == 9


def test_another_model_s_folder_is_no_place_to_save(tmp_path: Path) -> None:
    from epg.errors import ArtefactError
    from tests.pipeline.common import tiny_pipeline

    pipe = tiny_pipeline()
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "DiTPipeline"}))
    with pytest.raises(ArtefactError, match="belongs to another pipeline"):
        pipe.save_pretrained(tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / "diffusion_pytorch_model.safetensors")
    with pytest.raises(ArtefactError, match="was not saved by this class"):
        pipe.transformer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    with pytest.raises(ArtefactError, match="belongs to another model"):
        pipe.transformer.save_pretrained(tmp_path)


# One writer at a time -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["weights", "ema", "release"])
def test_two_writers_of_one_output(name: str, inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second is refused, naming the first; a lock that a dead process left is free at once, and is gone after."""
    out = tmp_path / "out"
    place = out / "nnet.pth" if name == "release" else out
    lock = place.with_name(f".{place.name}.lock")
    lock.parent.mkdir(exist_ok=True)
    with held(lock, "mine"):
        assert run(name, inputs, out) == 73
        assert f"process {os.getpid()} is writing to it" in capsys.readouterr().err
    assert lock.exists()
    assert run(name, inputs, out) == 0
    assert not lock.exists()


def test_many_processes_take_turns(tmp_path: Path) -> None:
    """With a lock file that each of them removes: what is counted under it is never counted twice."""
    code = (
        "import sys; from pathlib import Path\n"
        "from epg.errors import RunLockedError; from epg.storage.locks import held\n"
        "place, done = Path(sys.argv[1]), 0\n"
        "while done < 30:\n"
        "    with held(place / '.lock', 'it', wait=True, keep=False):\n"
        "        number = int((place / 'n').read_text()); (place / 'n').write_text(str(number + 1)); done += 1\n"
    )
    (tmp_path / "n").write_text("0")
    others = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(4)]
    assert [other.wait(60) for other in others] == [0] * 4
    assert (tmp_path / "n").read_text() == "120"


def test_an_empty_folder_is_filled_and_a_link_followed(inputs: Path, tmp_path: Path) -> None:
    """It may be mounted, or have the permissions that somebody gave it; what a killed process left there goes."""
    out, link = tmp_path / "mounted", tmp_path / "link"
    out.mkdir()
    (out / ".mounted.epg-0123abcd.tmp").mkdir()
    link.symlink_to(out)
    number = out.stat().st_ino
    assert run("weights", inputs, link) == 0
    assert out.stat().st_ino == number
    assert link.is_symlink()
    assert export.read(out).step == 10
    assert {path.name for path in out.iterdir()} == {"config.json", "model.safetensors", "README.md", "recipe.yaml"}
    assert run("weights", inputs, link) == 0  # over itself
    assert link.is_symlink()
    assert export.read(out).step == 10
    assert {path.name for path in tmp_path.iterdir()} == {"mounted", "link"}
