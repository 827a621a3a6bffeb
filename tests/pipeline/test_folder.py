"""Saved pipelines: what is in the folder, who can read it, and that reading it runs nothing."""

import ast
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from epg import load
from epg.errors import ArtefactError
from epg.pipeline import EPGModel, EPGPipeline, bundle, folder
from tests.generators import tiny_generator
from tests.pipeline.common import LABELS, pixels, python, quiet, tiny_pipeline

CONFIG, WEIGHTS = "transformer/config.json", "transformer/diffusion_pytorch_model.safetensors"
# Nothing may import the package; the folder has all it needs.
WITHOUT_EPG = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "epg":
            raise ImportError("epg is refused here")
sys.meta_path.insert(0, Refuse())
try:
    import epg
except ImportError:
    print("refused")
import torch
from diffusers import DiffusionPipeline
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pipeline") / "tiny"
    tiny_pipeline().save_pretrained(path)
    return path


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def change(file: Path, **entries: object) -> None:
    content = json.loads(file.read_text()) | entries
    file.write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))


# With and without this package ----------------------------------------------------------------------------------------


def test_files(saved):
    files = {path.relative_to(saved).as_posix() for path in saved.rglob("*") if path.is_file()}
    assert files == {"model_index.json", "pipeline_epg.py", CONFIG, WEIGHTS, "transformer/modeling_epg.py"}
    index = json.loads((saved / "model_index.json").read_text())
    assert index["_class_name"] == ["pipeline_epg", "EPGPipeline"]
    assert index["transformer"] == ["modeling_epg", "EPGModel"]
    assert index["id2label"] == {"0": "cat", "1": "dog", "2": "goldfish"}
    assert not any(str(saved) in (saved / file).read_text(errors="ignore") for file in files)


def test_it_comes_back(saved):
    expected = pixels(tiny_pipeline()(LABELS, generator=3).images)
    pipe = quiet(EPGPipeline.from_pretrained(saved))
    assert torch.equal(pixels(pipe(LABELS, generator=3).images), expected)
    assert torch.equal(load(saved).sample(torch.tensor(LABELS), seed=3), expected)
    assert not any(p.requires_grad for p in load(saved).denoiser.parameters())
    assert load(saved).class_names == ("cat", "dog", "goldfish")


@pytest.mark.parametrize("stage", ["diffusion", "consistency"])
def test_settings_come_back(tmp_path, stage):
    changes = {"sampling": {"steps": 7, "interval": [0.5, 2.0]}, "noise": {"shift": 0.25, "sigma_max": 40.0}}
    if stage == "diffusion":
        changes["sampling"]["guidance"] = 1.5
    model = tiny_generator(stage, **changes)
    EPGPipeline.from_generator(model).save_pretrained(tmp_path / "p")
    found = load(tmp_path / "p")
    assert found.sampling.model_dump() == model.sampling.model_dump()
    assert found.shift == 0.25
    assert found.denoiser.parameterization == model.denoiser.parameterization
    assert torch.equal(found.sigmas(), model.sigmas())
    assert torch.equal(found.sample(torch.tensor(LABELS)), model.sample(torch.tensor(LABELS)))


@pytest.fixture(scope="module")
def elsewhere(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a process without this package made of the folder, and of one whose code is a trap."""
    place = tmp_path_factory.mktemp("elsewhere")
    trap = Path(shutil.copytree(saved, place / "trap"))
    (trap / "pipeline_epg.py").write_text(
        f"import os; os.mkdir({str(place / 'canary')!r})\nraise RuntimeError('ran')\n"
    )
    code = f"""{WITHOUT_EPG}
pipe = DiffusionPipeline.from_pretrained({str(saved)!r}, trust_remote_code=True)
pipe.set_progress_bar_config(disable=True)
images = pipe(pipe.get_label_ids(["cat", "dog", "goldfish", "cat", "dog"]), generator=3, output_type="pt").images
torch.save(images, {str(place / "images.pt")!r})
pipe.save_pretrained({str(place / "again")!r})
assert not [name for name in sys.modules if name.split(".")[0] == "epg"]
try:
    DiffusionPipeline.from_pretrained({str(trap)!r}, trust_remote_code=True)
except RuntimeError as error:
    print(error)
"""
    printed = python(code, place / "home")
    assert "refused" in printed  # the package was there to be refused
    assert "ran" in printed
    return place


def test_the_folder_needs_nothing_of_this_package(saved, elsewhere):
    expected = tiny_pipeline()(LABELS, generator=3, output_type="pt").images
    assert torch.equal(torch.load(elsewhere / "images.pt", weights_only=True), expected)
    for file in saved.rglob("*"):  # what such a pipeline saves is the same folder again
        if file.is_file():
            assert (elsewhere / "again" / file.relative_to(saved)).read_bytes() == file.read_bytes(), file


def test_control_diffusers_runs_the_code_that_it_trusts(elsewhere):
    assert (elsewhere / "canary").is_dir()


def test_with_this_package_no_code_of_the_folder_runs(copy, tmp_path):
    canary = tmp_path / "canary"
    for file in copy.rglob("*.py"):
        file.write_text(f"import os; os.mkdir({str(canary)!r})\nraise RuntimeError('ran')\n")
    pipe = quiet(EPGPipeline.from_pretrained(copy, trust_remote_code=True))
    assert len(pipe([0], generator=1).images) == 1
    load(copy)
    EPGModel.from_pretrained(copy, subfolder="transformer")
    assert not canary.exists()
    for file in copy.rglob("*.py"):
        file.unlink()
    EPGPipeline.from_pretrained(copy)
    load(copy)


# The code in the folder -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", bundle.ROOTS)
def test_the_code_is_the_package_s_own(name):
    """Every definition stands word for word in the module that its section names, and nothing imports the package."""
    text = bundle.code()[name]
    section, checked = "", 0
    for line in text.splitlines():
        assert not line.startswith(("from epg", "import epg")), line
    tree = ast.parse(text)
    lines = text.splitlines()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            above = [line for line in lines[: node.lineno] if line.startswith("# epg/")]
            section = above[-1].split()[1]
            source = (Path(bundle.__file__).parents[2] / section).read_text()
            assert ast.get_source_segment(text, node) in source
            checked += 1
    assert checked > 10
    assert {n.name for n in tree.body if isinstance(n, ast.ClassDef)} >= {bundle.ROOTS[name][1]}


def test_the_code_says_where_it_is_from():
    from importlib.metadata import version

    for text in bundle.code().values():
        assert f"epg {version('epg')} (Apache-2.0)" in (ast.get_docstring(ast.parse(text)) or "")


def test_two_definitions_of_one_name_are_found_when_bundling(monkeypatch):
    real = bundle.read("epg.schedule")
    spoiled = bundle.Source(
        real.name,
        real.lines,
        real.docstring,
        real.statements,
        real.definitions | {"Normalizer": real.definitions["karras"]},
        real.imports,
    )
    read = bundle.read
    monkeypatch.setattr(bundle, "read", lambda name: spoiled if name == "epg.schedule" else read(name))
    monkeypatch.setattr(
        bundle, "reach", lambda m, n: {"epg.schedule": {"Normalizer"}, "epg.data.views.normalize": {"Normalizer"}}
    )
    with pytest.raises(AssertionError, match="Normalizer is defined in two modules"):
        bundle.bundle("epg.pipeline.call", "EPGPipeline")


# Hostile and damaged folders ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reader", [load, EPGPipeline.from_pretrained])
class TestRefused:
    def test_unknown_settings(self, copy, reader):
        change(copy / CONFIG, num_clases=3)
        with pytest.raises(ArtefactError, match=r"config\.json.*\n.*num_clases.*did you mean num_classes"):
            reader(copy)

    def test_unknown_pipeline_settings(self, copy, reader):
        change(copy / "model_index.json", sampler="heun", parametrization="x", parameterization=...)
        with pytest.raises(ArtefactError, match="did you mean parameterization") as error:
            reader(copy)
        assert "3 wrong settings" in str(error.value)

    @pytest.mark.parametrize(
        "entries",
        [
            {"depth": 10**9},
            {"encoder_width": -1},
            {"patch_size": 3},
            {"encoder_heads": 5},
            {"num_classes": "three"},
            {"mlp_ratio": float("nan")},
        ],
    )
    def test_impossible_sizes(self, copy, reader, entries):
        change(copy / CONFIG, **entries)
        with pytest.raises(ArtefactError, match=r"config\.json"):
            reader(copy)

    @pytest.mark.parametrize(
        "entries",
        [
            {"parameterization": "v"},
            {"normalization": {"mean": [0.5], "std": [0.0]}},
            {"normalization": {"mean": [0.5, 0.5], "std": [0.5, 0.5]}},
            {"noise": {"shift": 1.0, "sigma_min": 100.0}},
            {"noise": {"shift": float("inf")}},
            {"sampling": {"sampler": "os.system"}},
            {"sampling": {"steps": 10**12}},
            {"id2label": {"cat": "cat"}},
        ],
    )
    def test_impossible_settings(self, copy, reader, entries):
        change(copy / "model_index.json", **entries)
        with pytest.raises(ArtefactError, match=r"model_index\.json"):
            reader(copy)

    def test_another_pipeline(self, copy, reader):
        change(copy / "model_index.json", _class_name="DiTPipeline")
        with pytest.raises(ArtefactError, match="a pipeline of another kind"):
            reader(copy)

    def test_truncated_weights(self, copy, reader):
        (copy / WEIGHTS).write_bytes((copy / WEIGHTS).read_bytes()[:-50])
        with pytest.raises(ArtefactError, match="safetensors"):
            reader(copy)

    def test_missing_tensor(self, copy, reader):
        weights = load_file(copy / WEIGHTS)
        del weights["encoder.cls_token"]
        save_file(weights, copy / WEIGHTS)
        with pytest.raises(ArtefactError, match=r"missing: encoder\.cls_token"):
            reader(copy)

    def test_weights_that_are_not_finite(self, copy, reader):
        weights = load_file(copy / WEIGHTS)
        weights["encoder.cls_token"][:] = float("nan")
        save_file(weights, copy / WEIGHTS)
        with pytest.raises(ArtefactError, match=r"encoder\.cls_token holds values that are not finite"):
            reader(copy)

    def test_a_pickle_in_place_of_the_weights(self, copy, reader):
        weights = load_file(copy / WEIGHTS)
        (copy / WEIGHTS).unlink()
        torch.save(weights, copy / "transformer" / "diffusion_pytorch_model.bin")
        with pytest.raises(ArtefactError, match=r"diffusion_pytorch_model\.safetensors"):
            reader(copy)

    @pytest.mark.parametrize("file", ["../../secret.safetensors", 3, ""])
    def test_shards_elsewhere(self, copy, reader, file):
        index = {"weight_map": {"encoder.cls_token": file}}
        (copy / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
        with pytest.raises(ArtefactError, match=r"index\.json: damaged"):
            reader(copy)


def test_sharded_weights_and_variants(tmp_path):
    pipe = tiny_pipeline()
    expected = pixels(pipe(LABELS, generator=1).images)
    pipe.save_pretrained(tmp_path / "shards", max_shard_size="50KB")
    assert len(list((tmp_path / "shards" / "transformer").glob("*.safetensors"))) > 1
    assert torch.equal(load(tmp_path / "shards").sample(torch.tensor(LABELS), seed=1), expected)
    pipe.save_pretrained(tmp_path / "variant", variant="mine")
    found = quiet(EPGPipeline.from_pretrained(tmp_path / "variant", variant="mine"))
    assert torch.equal(pixels(found(LABELS, generator=1).images), expected)
    with pytest.raises(ArtefactError, match=r"diffusion_pytorch_model\.safetensors: "):
        load(tmp_path / "variant")


def test_unexpected_arguments(saved):
    with pytest.raises(TypeError, match="unexpected torch_type"):
        EPGPipeline.from_pretrained(saved, torch_type=torch.float16)


def test_an_average_cannot_be_chosen(saved):
    with pytest.raises(ArtefactError, match="one set of weights"):
        load(saved, ema=0.9)


def test_settings_of_the_folder_are_those_of_the_classes():
    import inspect

    model = inspect.signature(EPGModel.__init__).parameters.keys() - {"self"}
    pipeline = inspect.signature(EPGPipeline.__init__).parameters.keys() - {"self", "transformer"}
    assert model == folder.ModelSettings.model_fields.keys()
    assert pipeline == folder.PipelineSettings.model_fields.keys()
