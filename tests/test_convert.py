"""`epg convert`: the golden weights through it, the pipeline and the command line; cards; programs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from epg.checkpoint import export, saving
from epg.checkpoint.loading import load
from epg.checkpoint.official import EPG_NAMES, to_release
from epg.checkpoint.state_dict import read_state_dict
from epg.cli import main
from epg.config.recipe import run_config
from epg.data.views.normalize import Normalizer
from epg.errors import OutputError
from epg.networks.build import build_epg, build_rcm
from epg.objectives.pretraining import Pretraining
from epg.pipeline import EPGPipeline
from epg.publish.programs import OneStep, compared
from tests.generators import levels_apart, lively_epg, save_run, tiny_generator
from tests.helpers import GOLDEN, golden_recipe, relative, run_state, tiny_config
from tests.pipeline.common import pixels, quiet

TENSORS = load_file(GOLDEN / "tensors.safetensors")
LIMIT = 1e-4


def epg(*arguments: object) -> None:
    assert main([str(a) for a in arguments]) == 0


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The authors' weights of the golden networks as .pth, and what `epg convert` makes of them."""
    folder = tmp_path_factory.mktemp("golden")
    for name, file in (("official_epg_weights", "nnet_ema.pth"), ("official_rcm_weights", "nnet.pth")):
        torch.save(load_file(GOLDEN / f"{name}.safetensors"), folder / file)
    for stage, file in (("diffusion", "nnet_ema.pth"), ("consistency", "nnet_ema.pth"), ("pretraining", "nnet.pth")):
        recipe = {
            **golden_recipe(stage),
            "sampling": {"sampler": "one_step" if stage == "consistency" else "heun", "steps": 8},
        }
        (folder / f"{stage}.yaml").write_text(yaml.safe_dump(recipe))
        options = ("--recipe", folder / f"{stage}.yaml", "--stage", stage, "--no-samples", "--device", "cpu")
        epg("convert", folder / file, "--out", folder / stage, *options)
        if stage != "pretraining":
            epg(
                "convert",
                folder / stage,
                "--out",
                folder / f"{stage}-pipe",
                "--to",
                "pipeline",
                "--device",
                "cpu",
                "--no-samples",
            )
    return folder


# Golden cases ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [None, 2.5])
@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_golden_samples_through_the_pipeline(golden, sampler, scale):
    pipe = quiet(EPGPipeline.from_pretrained(golden / "diffusion-pipe"))
    values = pipe(
        TENSORS["sample.y"],
        guidance_scale=scale,
        num_inference_steps=8,
        sampler=sampler,
        latents=TENSORS["sample.unit_noise"],
        output_type="latent",
    ).images
    assert relative(values, TENSORS[f"sample.{sampler}.steps8.cfg{scale}.to_zeroTrue"]) < LIMIT


def test_golden_one_step_through_the_pipeline(golden):
    pipe = quiet(EPGPipeline.from_pretrained(golden / "consistency-pipe"))
    noise = TENSORS["sample.unit_noise"]
    values = pipe(TENSORS["sample.y"], latents=noise, output_type="latent").images
    assert relative(values, TENSORS["sample.onestep"]) < LIMIT


@pytest.mark.parametrize("stage", ["diffusion", "consistency"])
def test_the_command_line_draws_what_the_golden_pipeline_draws(golden, tmp_path, stage):
    """From the converted weights and from the pipeline folder, byte for byte; the pipeline is golden, see above."""
    for source, out in ((stage, "weights"), (f"{stage}-pipe", "pipe")):
        epg("sample", golden / source, "--out", tmp_path / out, "--count", 3, "--seed", 5, "--device", "cpu")
    images = quiet(EPGPipeline.from_pretrained(golden / f"{stage}-pipe"))([0, 1, 2], generator=5).images
    for i, image in enumerate(images):
        drawn = [np.asarray(Image.open(tmp_path / out / f"{i:06d}.png")) for out in ("weights", "pipe")]
        assert all(np.array_equal(picture, np.asarray(image)) for picture in drawn)
    assert levels_apart(pixels(images)[0], pixels(images)[1]) > 8


def test_the_release_comes_back(golden, tmp_path):
    for source, file, options in (
        ("diffusion", "nnet_ema.pth", ()),
        ("diffusion-pipe", "nnet_ema.safetensors", ()),
        ("pretraining", "nnet.pth", ()),
    ):
        epg("convert", golden / source, "--out", tmp_path / file, "--to", "release", *options)
        original = "official_rcm_weights" if source == "pretraining" else "official_epg_weights"
        found, expected = read_state_dict(tmp_path / file), load_file(GOLDEN / f"{original}.safetensors")
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_a_converted_encoder_starts_stage_two(golden, tmp_path):
    recipe = golden_recipe("diffusion")
    recipe["data"] |= {"source": str(pictures(tmp_path / "pictures")), "workers": 0}
    recipe["training"] |= {"steps": 1, "batch_size": 4, "trackers": [], "preview_every": 0}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    epg("finetune", tmp_path / "recipe.yaml", "--encoder", golden / "pretraining", "--out", tmp_path / "run")
    assert not json.loads((tmp_path / "run" / "handover.json").read_text())["missing"]


def pictures(folder: Path) -> Path:
    """Ten classes with a grey picture each."""
    for label in range(10):
        (folder / str(label)).mkdir(parents=True)
        Image.new("RGB", (32, 32), (20 * label,) * 3).save(folder / str(label) / "a.png")
    return folder


# Runs -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = save_run(tmp_path / "run", tiny_config(training={"ema": [0.9, 0.5]}))
    (folder / "config.yaml").write_text(tiny_config().to_yaml())
    return folder


def card(folder: Path) -> tuple[dict[str, Any], str]:
    """Header and text of the model card."""
    _, header, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(header), text


def test_a_run_becomes_a_pipeline_with_a_card(run, tmp_path):
    numbers = {"fid": {"name": "FID", "value": 12.3456, "error": 0.21, "better": "lower"}}
    receipt = {"metrics": numbers, "command": "epg evaluate /home/me/secret", "seed": 3}
    (run / "evaluation.json").write_text(json.dumps(receipt))
    options = ("--license", "mit", "--dataset", "me/cats", "--device", "cpu")
    epg("convert", run, "--out", tmp_path / "cats", *options)
    labels = torch.tensor([0, 1, 2])
    assert torch.equal(load(tmp_path / "cats").sample(labels), tiny_generator().sample(labels))
    header, text = card(tmp_path / "cats")
    assert header["license"] == "mit"
    assert (header["library_name"], header["pipeline_tag"]) == ("diffusers", "unconditional-image-generation")
    assert header["datasets"] == ["me/cats"]
    assert {"epg", "diffusion"} < set(header["tags"])
    [result] = header["model-index"][0]["results"]
    assert result["metrics"] == [{"type": "fid", "name": "FID", "value": 12.3456}]
    for words in (
        "| FID | 12.35 ± 0.21 |",
        "EMA with decay 0.9",
        "| recipe | tiny |",
        "| steps | 10 of 100 |",
        "## Licence\n\nmit",
    ):
        assert words in text
    assert "secret" not in text
    assert Image.open(tmp_path / "cats" / "samples.png").size[0] > 100
    assert yaml.safe_load((tmp_path / "cats" / "recipe.yaml").read_text())["recipe"] == "tiny"


def test_the_card_of_unlicensed_weights_says_so(run, tmp_path):
    epg("convert", run, "--out", tmp_path / "p", "--no-samples", "--device", "cpu")
    header, text = card(tmp_path / "p")
    assert "license" not in header
    assert "Not stated" in text
    assert "samples.png" not in text
    assert not (tmp_path / "p" / "samples.png").exists()


def test_the_code_of_a_card_runs(run, tmp_path, monkeypatch):
    epg("convert", run, "--out", tmp_path / "w", "--to", "weights", "--no-samples", "--device", "cpu")
    header, text = card(tmp_path / "w")
    assert header["library_name"] == "epg"
    code = text.split("```python\n")[1].split("```")[0]
    assert "epg.load" in code
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["images"].shape == (8, 1, 8, 8)


def test_another_average(run, tmp_path):
    epg("convert", run, "--out", tmp_path / "p", "--ema", 0.5, "--no-samples", "--device", "cpu")
    labels = torch.tensor([0, 1, 2])
    assert torch.equal(load(tmp_path / "p").sample(labels), tiny_generator(seed=1).sample(labels))
    assert "EMA with decay 0.5" in card(tmp_path / "p")[1]


def test_a_path_of_this_machine_is_not_published(tmp_path):
    run = save_run(tmp_path / "run", tiny_config(data={"source": "/home/me/photographs"}))
    epg("convert", run, "--out", tmp_path / "p", "--no-samples", "--device", "cpu")
    for file in (tmp_path / "p").rglob("*"):
        assert file.is_dir() or b"/home/me" not in file.read_bytes(), file
    assert "| data | photographs |" in card(tmp_path / "p")[1]


def test_an_encoder_becomes_weights(tmp_path):
    config = tiny_config("pretraining")
    objective = Pretraining(build_rcm(config.model, config.data), config)
    saving.save(tmp_path / "run" / "checkpoints", 5, {"model": objective.state_dict()}, run_state(config), keep=2)
    epg("convert", tmp_path / "run", "--out", tmp_path / "rcm", "--device", "cpu")
    found, expected = export.read(tmp_path / "rcm").tensors(), objective.network.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in found)
    header, text = card(tmp_path / "rcm")
    assert header["pipeline_tag"] == "image-feature-extraction"
    assert "epg finetune tiny --encoder rcm" in text


def test_an_unconditional_model(tmp_path):
    run = save_run(tmp_path / "run", tiny_config(model={"num_classes": 0}))
    epg("convert", run, "--out", tmp_path / "p", "--device", "cpu")
    pipe = quiet(EPGPipeline.from_pretrained(tmp_path / "p"))
    expected = tiny_generator(model={"num_classes": 0}).sample(count=2, seed=1)
    assert torch.equal(pixels(pipe(batch_size=2, generator=1).images), expected)
    assert "none (unconditional)" in card(tmp_path / "p")[1]


# Programs -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one_step(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one-step")
    config = tiny_config("consistency")
    weights = {"ema-0.9": lively_epg(config).state_dict()}
    export.write(folder / "w", 10, weights, run_state(config, ["cat", "dog", "goldfish"]))
    return folder / "w"


def expected_images(count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noise, labels, and the pixels in [0, 1] that the pipeline makes of them."""
    model = tiny_generator("consistency")
    noise, labels = model.unit_noise(range(count), seed=2), torch.arange(count) % 3
    pipe = quiet(EPGPipeline.from_generator(model))
    return noise, labels, pipe(labels, latents=noise, output_type="pt").images


def test_a_program(one_step, tmp_path, capsys):
    epg("convert", one_step, "--out", tmp_path / "one.pt2", "--to", "program")
    assert "differs from PyTorch by at most" in capsys.readouterr().out
    program = torch.export.load(tmp_path / "one.pt2").module()
    noise, labels, images = expected_images(5)  # a batch that it was not traced with
    assert torch.allclose(program(noise, labels), images, atol=1e-5)


def test_onnx(one_step, tmp_path, capsys):
    onnxruntime = pytest.importorskip("onnxruntime")
    epg("convert", one_step, "--out", tmp_path / "one.onnx", "--to", "onnx")
    assert "differs from PyTorch by at most" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["one.onnx"]  # no second file beside it
    session = onnxruntime.InferenceSession(str(tmp_path / "one.onnx"))
    assert [i.name for i in session.get_inputs()] == ["noise", "labels"]
    noise, labels, images = expected_images(5)
    found = session.run(["images"], {"noise": noise.numpy(), "labels": labels.numpy()})[0]
    assert np.allclose(found, images.numpy(), atol=1e-4)


def test_a_program_that_computes_something_else_is_refused():
    network = OneStep(tiny_generator("consistency"))
    assert compared(network, lambda *inputs: network(*inputs) + 1e-5, Path("one.pt2")) == pytest.approx(1e-5, rel=0.1)
    for wrong in (0.01, float("nan")):
        with pytest.raises(OutputError, match=r"one\.pt2: its images differ from PyTorch's by .* not to be used"):
            compared(network, lambda *inputs, off=wrong: network(*inputs) + off, Path("one.pt2"))


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["{run}", "--out", "{out}", "--to", "program"], 2, "writes a file that ends in .pt2"),
        (["{run}", "--out", "{out}.pt2", "--to", "program"], 2, "only a one-step model draws in one step"),
        (["{run}", "--out", "{out}.pth", "--to", "release", "--push", "me/x"], 2, "goes with --to weights or pipeline"),
        (["{run}", "--out", "{out}", "--recipe", "digits"], 2, "for a file of the release"),
        (["{run}", "--out", "{out}", "--ema", "0.7"], 77, "no EMA with decay 0.7"),
        (["{run}", "--out", "{full}"], 74, "holds mine.txt, which is not ours"),
        (["{run}", "--out", "{file}"], 74, "is not a folder"),
        (["{out}", "--out", "{out}"], 77, "does not exist"),
        (["{file}", "--out", "{out}"], 77, "cannot be read as a state dict"),
        (["nobody/nothing", "--out", "{out}"], 77, "nobody/nothing: no such folder here"),
    ],
)
def test_refused(run, tmp_path, capsys, arguments, code, words):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    places = {"run": run, "out": tmp_path / "out", "full": tmp_path / "full", "file": tmp_path / "file"}
    assert main(["convert", *(a.format(**places) for a in arguments), "--device", "cpu"]) == code
    assert words in capsys.readouterr().err
    assert (tmp_path / "full" / "mine.txt").read_text() == "mine"
    assert (tmp_path / "file").read_text() == "mine"


def test_converting_again_replaces_and_a_failure_does_not(run, tmp_path, monkeypatch):
    options = ("--no-samples", "--device", "cpu")
    epg("convert", run, "--out", tmp_path / "p", *options)
    epg("convert", run, "--out", tmp_path / "p", "--ema", 0.5, *options)
    labels = torch.tensor([0])
    second = load(tmp_path / "p").sample(labels)
    assert torch.equal(second, tiny_generator(seed=1).sample(labels))

    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("epg.publish.folders.write_card", full)
    assert main(["convert", str(run), "--out", str(tmp_path / "p"), *options]) == 74
    assert torch.equal(load(tmp_path / "p").sample(labels), second)


@pytest.mark.parametrize(
    ("flags", "recorded"),
    [([], "symmetric"), (["--normalization", "imagenet"], "imagenet"), (["--normalization", "symmetric"], "symmetric")],
)
def test_normalisation_of_a_released_one_step_model(tmp_path, flags, recorded):
    """The released consistency configuration sets no std; the recipes, and the released diffusion models, do."""
    config = run_config("cifar10", "consistency")
    model = config.model.model_copy(update={"num_classes": 3})
    network = build_epg(model, config.data)
    torch.save(to_release(network.state_dict(), EPG_NAMES), tmp_path / "nnet_ema.pth")
    source = ["convert", str(tmp_path / "nnet_ema.pth"), "--recipe", "cifar10", "--no-samples"]
    assert main([*source, "--stage", "consistency", "--out", str(tmp_path / "one"), *flags]) == 0
    assert load(tmp_path / "one").normalizer == (
        Normalizer.symmetric(3) if recorded == "symmetric" else Normalizer.imagenet()
    )
    assert main([*source, "--out", str(tmp_path / "many")]) == 0
    assert load(tmp_path / "many").normalizer == Normalizer.imagenet()
