"""Publishing and fetching, through `huggingface_hub` itself and a server of our own."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from epg.checkpoint import saving
from epg.checkpoint.loading import load
from epg.errors import ArtefactError, OutputError
from epg.networks.build import build_rcm
from epg.objectives.pretraining import Pretraining
from epg.storage import hub
from tests.generators import save_run, state_of, tiny_generator
from tests.helpers import GOLDEN, golden_recipe, run_state, tiny_config
from tests.hub.server import TOKEN, Hub

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def server() -> Iterator[Hub]:
    hub = Hub()
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    yield hub
    hub.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a generator, one of an encoder, recipes."""
    folder = tmp_path_factory.mktemp("hub")
    save_run(folder / "run", tiny_config())
    config = tiny_config("pretraining", model={"num_classes": 0})
    tensors = {"model": Pretraining(build_rcm(config.model, config.data), config).state_dict()}
    saving.save(folder / "encoder" / "checkpoints", 5, tensors, run_state(config), keep=2)
    tuned = tiny_config(model={"num_classes": 10}, training={"batch_size": 16, "steps": 1}).model_dump(mode="json")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(tuned))
    (folder / "golden.yaml").write_text(yaml.safe_dump(golden_recipe("diffusion")))
    return folder


@pytest.fixture(scope="module")
def found(server: Hub, folder: Path) -> dict[str, Any]:
    """What the commands of `session.py` answered."""
    torch.save(load_file(GOLDEN / "official_epg_weights.safetensors"), folder / "nnet_ema.pth")
    server.repositories["me/release"] = {
        "EPG-tiny/nnet.pth": b"not this one",
        "EPG-tiny/nnet_ema.pth": (folder / "nnet_ema.pth").read_bytes(),
    }
    settings = {"HF_ENDPOINT": server.address, "HF_HOME": str(folder / "home"), "HF_TOKEN": TOKEN}
    settings |= {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.hub.session", str(folder)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", **settings},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_what_is_pushed_is_the_folder(found, server, folder):
    assert found["push"]["code"] == 0, found["push"]
    local = {p.relative_to(folder / "tiny").as_posix(): p for p in (folder / "tiny").rglob("*") if p.is_file()}
    assert {"README.md", "samples.png", "pipeline_epg.py", "recipe.yaml"} < local.keys()
    pushed = server.repositories["me/tiny"]
    assert {name: path.read_bytes() for name, path in local.items()} == {n: c for n, c in pushed.items() if n in local}
    assert pushed.keys() - local.keys() <= {".gitattributes"}
    assert "me/tiny/commit" in found["push"]["printed"]


def test_a_repository_is_loaded_by_its_name(found, folder):
    assert found["sample"]["code"] == 0, found["sample"]
    assert (folder / "out" / "000002.png").is_file()
    images = torch.load(folder / "images.pt", weights_only=True)
    assert torch.equal(images, tiny_generator().sample(torch.tensor([0, 1, 2])))


def test_loading_fetches_no_code(found, server):
    """Only diffusers, which was told to trust the repository, asked for it."""
    before = server.requests[: next(i for i, r in enumerate(server.requests) if r.startswith("HEAD") and ".py" in r)]
    assert any("model_index.json" in request for request in before)
    assert any("diffusion_pytorch_model.safetensors" in request for request in before)
    assert not any(".py" in request or "README" in request for request in before)


def test_diffusers_loads_the_repository_with_its_own_code(found, folder):
    assert found["diffusers"].startswith("diffusers_modules.")
    piped = torch.load(folder / "piped.pt", weights_only=True)
    images = torch.load(folder / "images.pt", weights_only=True)
    assert torch.equal((piped * 255).round().to(torch.uint8), images)


def test_push_to_hub_of_a_pipeline(found, server):
    pushed = server.repositories["me/again"].keys()
    assert {"model_index.json", "pipeline_epg.py", "transformer/modeling_epg.py"} < pushed


def test_finetune_takes_an_encoder_of_the_hub(found, folder):
    assert found["push encoder"]["code"] == 0, found["push encoder"]
    assert found["finetune"]["code"] == 0, found["finetune"]
    handover = json.loads((folder / "tuned" / "handover.json").read_text())
    assert len(handover["loaded"]) == len(build_rcm(*architecture()).encoder.state_dict())


def architecture() -> tuple[Any, Any]:
    config = tiny_config("pretraining")
    return config.model, config.data


def test_a_file_of_the_release_by_its_folder(found, folder):
    assert found["release"]["code"] == 0, found["release"]
    assert load(folder / "golden").num_classes == 10
    assert json.loads((folder / "golden" / "config.json").read_text())["kind"] == "ema-0.9999"
    absent = found["release absent"]
    assert absent["code"] == 77
    assert "no such file; there are EPG-tiny/nnet.pth, EPG-tiny/nnet_ema.pth" in absent["printed"]


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("absent", 77, "me/absent: neither a folder here nor a repository of the Hub"),
        ("not ours", 77, "no checkpoint here"),
        ("no network", 77, "me/elsewhere"),
        ("push without network", 74, "no connection to the Hub"),
        ("offline", 77, "me/elsewhere: no such folder here, and the Hub cannot be asked"),
    ],
)
def test_what_goes_wrong_is_said(found, name, code, words):
    assert found[name]["code"] == code, found[name]
    assert words in found[name]["printed"]
    assert "Traceback" not in found[name]["printed"]


def test_what_was_fetched_is_there_without_a_network(found, folder):
    assert found["cached"]["code"] == 0, found["cached"]
    assert (folder / "cached" / "000000.png").is_file()
    assert "me/elsewhere" in found["load offline"]
    assert (folder / "tiny2" / "model_index.json").is_file()  # what could not be pushed is written


# Names ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("user/repo", True),
        ("user/repo@v1.0", True),
        ("user/repo@refs/pr/1", True),
        ("repo", False),
        ("/user/repo", False),
        ("a/b/c", False),
        ("../repo", False),
        ("user/", False),
        ("here/repo", False),
    ],
)
def test_what_can_be_a_repository(tmp_path, monkeypatch, name, expected):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    assert hub.is_repository(name) is expected


def test_a_folder_of_that_name_comes_first(tmp_path, monkeypatch):
    state_of(tiny_config())
    (tmp_path / "user" / "repo").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hub.local("user/repo") == Path("user/repo")


@pytest.mark.parametrize("name", ["repo", "a/b/c", "user/repo@main"])
def test_pushing_to_an_impossible_name(tmp_path, name):
    with pytest.raises(OutputError, match="user/repo"):
        hub.push(tmp_path, name)


def test_splitting():
    assert hub.split("user/repo@v1") == ("user/repo", "v1")
    assert hub.split("user/repo") == ("user/repo", None)
    with pytest.raises(ArtefactError, match="user/repo"):
        hub.split("nothing")
