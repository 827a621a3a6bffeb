import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from epg.checkpoint import checkpoint, saving
from epg.checkpoint.manifest import FORMAT, IncompatibleError, signed
from epg.errors import ArtefactError, OutputError
from tests.helpers import run_state, tiny_config

TENSORS = {
    "model": {"a": torch.arange(20.0).view(4, 5), "b": torch.tensor(3), "c": torch.ones(3, dtype=torch.bfloat16)},
    "optimizer": {"a.exp_avg": torch.randn(4, 5, generator=torch.Generator().manual_seed(0))},
}
STATE = run_state(tiny_config(seed=3), ["ä", "b"])


def save(folder: Path, step: int = 5, keep: int = 10, tensors: Any = TENSORS) -> Path:
    return saving.save(folder, step, tensors, STATE, keep)


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


# Writing --------------------------------------------------------------------------------------------------------------


def test_layout(tmp_path):
    path = save(tmp_path / "checkpoints")
    assert path == tmp_path / "checkpoints" / "step-00000005"
    files = {"manifest.json", "model.safetensors", "optimizer.safetensors", "state.json"}
    assert {p.name for p in path.iterdir()} == files
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["files"].keys() == files - {"manifest.json"}
    assert all(manifest["files"][name]["size"] == (path / name).stat().st_size for name in manifest["files"])
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000005"]


def test_round_trip(tmp_path):
    found = checkpoint.read(save(tmp_path))
    assert found.step == 5
    assert {k: found.state[k] for k in STATE} == STATE
    for name, tensors in TENSORS.items():
        assert equal(found.tensors(name), tensors)


def test_unknown_tensors(tmp_path):
    with pytest.raises(ArtefactError, match=r"ema-0\.5\.safetensors: cannot be read"):
        checkpoint.read(save(tmp_path)).tensors("ema-0.5")


def test_tensors_that_are_not_contiguous(tmp_path):
    odd = torch.arange(12.0).view(3, 4).T
    assert torch.equal(checkpoint.read(save(tmp_path, tensors={"model": {"x": odd}})).tensors("model")["x"], odd)


def test_tensors_that_share_memory(tmp_path):
    x = torch.randn(3)
    shared = {"x": x, "y": x, "z": x[:2]}
    assert equal(checkpoint.read(save(tmp_path, tensors={"model": shared})).tensors("model"), shared)


def test_saving_a_step_again_replaces_it(tmp_path):
    save(tmp_path)
    path = save(tmp_path, tensors={"model": {"a": torch.zeros(1)}})
    assert equal(checkpoint.read(path).tensors("model"), {"a": torch.zeros(1)})


def test_an_unfinished_write_is_ignored_and_cleared(tmp_path):
    save(tmp_path, 5)
    stale = tmp_path / ".step-00000006.epg-0123abcd.tmp"
    stale.mkdir()
    (stale / "model.safetensors").write_bytes(b"half")
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.step == 5
    save(tmp_path, 6)
    assert not stale.exists()


def test_pruning_keeps_the_newest(tmp_path):
    for step in (1, 2, 30, 4):
        save(tmp_path, step, keep=10)
    save(tmp_path, 31, keep=3)
    assert [p.name for p in checkpoint.listing(tmp_path)] == ["step-00000004", "step-00000030", "step-00000031"]


def test_pruning_never_removes_what_was_just_written(tmp_path):
    """Steps 40 and 50 are damaged, so the run fell back to 30 and saves 35."""
    save(tmp_path, 30)
    for step in (40, 50):
        (save(tmp_path, step) / "model.safetensors").write_bytes(b"damaged")
    path = save(tmp_path, 35, keep=2)
    assert path.is_dir()
    with pytest.warns(UserWarning, match="skipping a damaged checkpoint"):
        found = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.step == 35


def test_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "checkpoints").write_text("mine")
    with pytest.raises(OutputError, match=r"step-00000005: cannot be written: .*needs [\d,]+ bytes; [\d,]+ are free"):
        save(tmp_path / "checkpoints")
    assert (tmp_path / "checkpoints").read_text() == "mine"


def test_a_number_type_that_cannot_be_saved(tmp_path):
    save(tmp_path, 1)
    with pytest.raises(ValueError, match=r"x: torch\.complex64 cannot be saved"):
        save(tmp_path, 2, tensors={"model": {"x": torch.zeros(2, dtype=torch.complex64)}})
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.step == 1


def test_keeping_fewer_than_two_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least 2"):
        save(tmp_path, keep=1)


def test_a_state_that_is_not_complete_is_not_written(tmp_path):
    with pytest.raises(ArtefactError, match="skipped: Field required"):
        saving.save(tmp_path, 5, TENSORS, {k: v for k, v in STATE.items() if k != "skipped"}, 2)
    assert not list(tmp_path.iterdir())


def test_the_manifest_says_what_wrote_it(tmp_path):
    manifest = checkpoint.read(save(tmp_path)).manifest
    assert manifest.versions.keys() == {"epg", "torch", "safetensors", "python"}
    assert manifest.threads == torch.get_num_threads()
    assert manifest.data == STATE["data"]
    assert len(manifest.config) == 64


def test_keep_every(tmp_path):
    for step in range(13):
        saving.save(tmp_path, step, TENSORS, STATE, keep=2, keep_every=5)
    assert [checkpoint.step_of(p) for p in checkpoint.listing(tmp_path)] == [5, 10, 11, 12]


# Damage ---------------------------------------------------------------------------------------------------------------

FILES = ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]


@pytest.mark.parametrize("name", FILES)
def test_every_changed_byte_is_detected_and_named(tmp_path, name):
    path = save(tmp_path)
    file = path / name
    good = file.read_bytes()
    chooser = random.Random(name)
    for place in chooser.sample(range(len(good)), 50):
        bad = bytearray(good)
        bad[place] ^= 1 << chooser.randrange(8)
        file.write_bytes(bad)
        with pytest.raises(ArtefactError) as error:
            checkpoint.read(path)
        assert str(path) in str(error.value)
        if name != "manifest.json":  # a changed manifest accuses the file that it describes wrongly
            assert str(file) in str(error.value)
    file.write_bytes(good)
    assert checkpoint.read(path).step == 5


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("left", [0, 1, -1])
def test_truncated_file(tmp_path, name, left):
    file = save(tmp_path) / name
    file.write_bytes(file.read_bytes()[:left])
    with pytest.raises(ArtefactError, match=name):
        checkpoint.read(file.parent)


@pytest.mark.parametrize("name", FILES)
def test_longer_file(tmp_path, name):
    file = save(tmp_path) / name
    file.write_bytes(file.read_bytes() + b"}")
    with pytest.raises(ArtefactError, match=name):
        checkpoint.read(file.parent)


@pytest.mark.parametrize("name", FILES)
def test_missing_file(tmp_path, name):
    file = save(tmp_path) / name
    file.unlink()
    with pytest.raises(ArtefactError, match=name):
        checkpoint.read(file.parent)


@pytest.mark.parametrize(
    "content", ["[]", "3", "{", "", '{"format": 2}', '{"format": 2, "files": {}}', '{"format": 2, "files": 3}']
)
def test_foreign_manifest(tmp_path, content):
    path = save(tmp_path)
    (path / "manifest.json").write_text(content)
    with pytest.raises(ArtefactError, match=r"manifest\.json: damaged"):
        checkpoint.read(path)


def test_another_format(tmp_path):
    path = save(tmp_path)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(signed({**manifest, "format": FORMAT + 1}), indent=1))
    with pytest.raises(IncompatibleError, match=f"format {FORMAT + 1}; this version reads {FORMAT}"):
        checkpoint.read(path)


def test_a_later_format_is_not_passed_over_for_an_older_checkpoint(tmp_path):
    save(tmp_path, 1)
    path = save(tmp_path, 2)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(signed({**manifest, "format": FORMAT + 1}), indent=1))
    with pytest.raises(IncompatibleError, match=f"format {FORMAT + 1}"):
        checkpoint.newest(tmp_path)


# Choosing -------------------------------------------------------------------------------------------------------------


def test_newest_falls_back_with_a_warning(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step)
    (tmp_path / "step-00000003" / "model.safetensors").write_bytes(b"")
    shutil.rmtree(tmp_path / "step-00000002")
    with pytest.warns(UserWarning, match=r"step-00000003/model\.safetensors"):
        found = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.step == 1


def test_no_valid_checkpoint_is_an_error(tmp_path):
    for step in (1, 2):
        (save(tmp_path, step) / "state.json").unlink()
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(ArtefactError, match="no checkpoint verifies"):
        checkpoint.newest(tmp_path)


@pytest.mark.parametrize("exists", [False, True])
def test_no_checkpoint_at_all(tmp_path, exists):
    folder = tmp_path / "checkpoints"
    if exists:
        folder.mkdir()
    assert checkpoint.newest(folder) is None
    with pytest.raises(ArtefactError, match="no checkpoint here"):
        checkpoint.find(tmp_path)


def test_find(tmp_path):
    for step in (3, 12):
        save(tmp_path / "checkpoints", step)
    assert checkpoint.find(tmp_path).step == 12
    assert checkpoint.find(str(tmp_path)).step == 12
    assert checkpoint.find(tmp_path / "checkpoints" / "step-00000003").step == 3
    (tmp_path / "checkpoints" / "step-00000003" / "state.json").write_text("{}")
    with pytest.raises(ArtefactError, match=r"state\.json"):
        checkpoint.find(tmp_path / "checkpoints" / "step-00000003")
    (tmp_path / "checkpoints" / "step-00000012" / "manifest.json").unlink()
    with pytest.raises(ArtefactError, match=r"manifest\.json"):
        checkpoint.find(tmp_path / "checkpoints" / "step-00000012")
