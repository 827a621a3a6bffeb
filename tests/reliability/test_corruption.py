"""R4: damage of the newest checkpoint is found, named, and the one before it used; never a start from scratch."""

import json
import random
import re
import shutil
import warnings
from pathlib import Path

import pytest
from safetensors import SafetensorError
from safetensors.torch import load_file

from epg.checkpoint import checkpoint, manifest, saving
from epg.checkpoint.manifest import IncompatibleError
from epg.cli import main
from epg.errors import ArtefactError
from epg.runs import prepare_run, train
from epg.storage import artefact
from tests.reliability.common import save, valid
from tests.reliability.mutations import MUTATIONS
from tests.training.test_loop import assert_identical, tensors, tiny


def mutated(start: Path, target: Path, chooser: random.Random) -> tuple[Path, str]:
    shutil.copytree(start, target)
    path = target / "checkpoints" / "step-00000004"
    return path, chooser.choice(MUTATIONS)(path, chooser)


@pytest.fixture
def start(scratch: Path) -> Path:
    for step in (2, 4):
        save(scratch / "start" / "checkpoints", step, size=2000)
    return scratch / "start"


def check(run: Path, path: Path, what: str) -> None:
    """The damage is found by loading (which names it and falls back) and by `epg verify`."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        problem = ""
        try:
            found = checkpoint.newest(run / "checkpoints")
        except IncompatibleError as error:  # signed anew, but not what this version reads: refused
            problem = str(error)
        else:
            assert found is not None, what
            assert found.step == 2, what
            assert len(said) == 1, what
        assert str(path) in problem + "".join(str(w.message) for w in said), what
    assert main(["verify", str(run)]) == 77, what


def test_a_hundred_mutations(start: Path, scratch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chooser = random.Random(0)
    for i in range(100):
        run = scratch / str(i)
        path, what = mutated(start, run, chooser)
        check(run, path, what)
        said = capsys.readouterr()
        assert "damaged" in said.out
        assert re.search(r"error: .*1 of 2 not intact", said.err)
        assert str(path) in said.err
        assert valid(run / "checkpoints") == [2]
        shutil.rmtree(run)
    assert main(["verify", str(start)]) == 0


def test_control_without_the_hash_most_flips_are_missed(
    start: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trusting(file: Path) -> dict[str, object]:
        recorded: dict[str, dict[str, object]] = json.loads((file.parent / "manifest.json").read_text())["files"]
        return recorded[file.name]

    monkeypatch.setattr(checkpoint, "fingerprint", trusting)
    chooser, missed = random.Random(0), 0
    for i in range(100):
        run = shutil.copytree(start, scratch / str(i))
        path = run / "checkpoints" / "step-00000004"
        file = path / "model.safetensors"
        content = bytearray(file.read_bytes())
        content[chooser.randrange(len(content))] ^= 1 << chooser.randrange(8)
        file.write_bytes(content)
        try:
            load_file(file)
            missed += checkpoint.read(path).step == 4
        except (ArtefactError, SafetensorError, ValueError):
            pass
    assert missed >= 60


def test_the_run_goes_on_from_the_one_before(tmp_path: Path) -> None:
    config = tiny("diffusion", training={"steps": 6, "checkpoint_every": 2})
    train(config, tmp_path / "straight")
    for name in ("optimizer.safetensors", "manifest.json"):
        run = shutil.copytree(tmp_path / "straight", tmp_path / f"other {name}")
        path = run / "checkpoints" / "step-00000006"
        shutil.copy(run / "checkpoints" / "step-00000004" / name, path / name)
        with pytest.warns(UserWarning, match="skipping a damaged checkpoint: .*step-00000006"):
            train(config, run)
        assert_identical(tensors(tmp_path / "straight"), tensors(run))


def test_never_from_scratch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No checkpoint verifies: the same command refuses, and leaves everything as it is."""
    config = tmp_path / "config.yaml"
    config.write_text(tiny("diffusion", training={"steps": 4, "checkpoint_every": 2}).to_yaml())
    command = ["finetune", str(config), "--from-scratch", "--out", str(tmp_path / "run")]
    assert main(command) == 0
    for path in checkpoint.listing(tmp_path / "run" / "checkpoints"):
        (path / "model.safetensors").write_bytes(b"")
    log = (tmp_path / "run" / "log.jsonl").read_text()
    with pytest.warns(UserWarning, match="damaged"):
        assert main(command) == 77
    assert "no checkpoint verifies" in capsys.readouterr().err
    assert (tmp_path / "run" / "log.jsonl").read_text() == log


def test_limits_before_reading(scratch: Path) -> None:
    """A header that claims 77 MB, 30 000 tensors, an unknown type, a state of 20 MB: refused, and named."""
    file = scratch / "model.safetensors"
    file.write_bytes((77 * 2**20).to_bytes(8, "little") + bytes(100))
    with pytest.raises(ArtefactError, match="header claims 80740352 bytes"):
        artefact.read_tensors(file)
    table = {f"t{i}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for i in range(30_000)}
    for content, problem in [(table, "at most 20000"), ({"a": {"dtype": "F8_E4M3", "shape": []}}, "unknown type")]:
        text = json.dumps(content).encode()
        file.write_bytes(len(text).to_bytes(8, "little") + text)
        with pytest.raises(ArtefactError, match=problem):
            artefact.read_tensors(file)
    (scratch / "state.json").write_bytes(b" " * 20 * 2**20)
    with pytest.raises(ArtefactError, match="larger than"):
        artefact.read_json(scratch / "state.json")
    (scratch / "state.json").write_text("[" * 100_000)
    with pytest.raises(ArtefactError, match="damaged"):
        artefact.read_json(scratch / "state.json")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float, tmp_path: Path) -> None:
    config = tiny("diffusion", training={"steps": 2})
    train(config, tmp_path)
    found = checkpoint.find(tmp_path)
    groups = {name: found.tensors(name) for name in found.groups}
    groups["ema-0.99"]["decoder.out.weight"][0, 0] = value
    state = {k: v for k, v in found.state.items() if k not in ("step", "format")}
    saving.save(tmp_path / "checkpoints", 2, groups, state, keep=2)
    with pytest.raises(ArtefactError, match=r"ema-0\.99\.safetensors: decoder\.out\.weight holds values .* not finite"):
        prepare_run(config, tmp_path).trainer.restore()
    assert main(["verify", str(tmp_path)]) == 77


def test_a_manifest_of_the_same_content_but_other_bytes_is_noticed(scratch: Path) -> None:
    path = save(scratch, 2)
    content = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest.signed(content)))
    with pytest.raises(ArtefactError, match=r"manifest\.json: damaged"):
        checkpoint.read(path)
