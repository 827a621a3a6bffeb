"""Every recipe that comes with the package: the paper's figures, and two steps of it through the command line."""

import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from epg.cli import main
from epg.config.objectives import KINDS
from epg.config.recipe import Expected, expected, recipe_names, run_config, stages_of
from epg.cost.network import epg_cost, rcm_parameters
from epg.errors import UserError

NARROW = shlex.split(
    "--model.encoder.depth 1 --model.encoder.width 24 --model.encoder.heads 2 --model.decoder.width 24 "
    "--model.decoder.heads 2 --model.projector-hidden 16 --model.projector-out 8 --training.batch-size 4 "
    "--training.steps 2 --training.preview-every 0 --training.log-every 1 --training.trackers --data.workers 0 "
    "--training.compile False --training.device cpu"
)
STATED = [(name, stage) for name in recipe_names() for stage in expected(name)]


@pytest.mark.parametrize(("recipe", "stage"), STATED)
def test_networks_have_the_published_sizes(recipe: str, stage: str) -> None:
    """Built on the meta device. The paper prints patch 16's sizes for the network of 32, 1.2 % below."""
    config, paper = run_config(recipe, stage), expected(recipe)[stage]
    if stage == "pretraining":
        assert rcm_parameters(config.model, config.data) / 1e6 == pytest.approx(paper.parameters, rel=0.01)
        return
    cost = epg_cost(config.model, config.data)
    assert cost.parameters / 1e6 == pytest.approx(paper.parameters, rel=0.01)
    if paper.gflops is not None:
        assert cost.macs / 1e9 == pytest.approx(paper.gflops, rel=0.012 if recipe == "imagenet512-l" else 0.01)


def test_figures_of_the_abstract() -> None:
    stated = {(name, stage): expected(name)[stage].fid for name, stage in STATED}
    assert {key: fid for key, fid in stated.items() if fid is not None} == {
        ("imagenet256-g", "diffusion"): 1.58,
        ("imagenet256-l", "consistency"): 8.82,
        ("imagenet512-l", "diffusion"): 2.35,
    }
    assert expected("imagenet256-g")["diffusion"].labels == "balanced"


def test_expected_figures_of_a_recipe_of_one_s_own(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("base: digits\nexpected:\n  diffusion: {fid: 3}\n")
    assert expected(str(mine)) == {"diffusion": Expected(fid=3)}
    assert run_config(str(mine), "diffusion") == run_config("digits", "diffusion").model_copy(update={"recipe": "mine"})
    mine.write_text("base: digits\nexpected:\n  diffusion: {fed: 3}\n  painting: {fid: 1}\n")
    with pytest.raises(UserError) as error:
        run_config(str(mine), "diffusion")
    assert "expected.diffusion: fed: no such setting; did you mean fid?" in str(error.value)
    assert "expected.painting: no such stage" in str(error.value)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pictures of noise of two classes, 32x32 in colour."""
    folder = tmp_path_factory.mktemp("photographs")
    random = np.random.default_rng(0)
    for i in range(8):
        (folder / f"class-{i % 2}").mkdir(exist_ok=True)
        pixels = random.integers(256, size=(32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"class-{i % 2}" / f"{i}.png")
    return folder


@pytest.mark.parametrize("recipe", recipe_names())
def test_two_steps_of_every_stage(recipe: str, photographs: Path, tmp_path: Path) -> None:
    small = list(NARROW)
    if recipe != "digits":
        small += ["--data.source", str(photographs), "--data.image-size", "32"]
    encoder = tmp_path / "pretraining"
    for stage in stages_of(recipe):
        verb = ["pretrain", recipe] if stage == "pretraining" else ["finetune", recipe, "--encoder", str(encoder)]
        if KINDS[stage].continues:
            verb += ["--from", str(tmp_path / "diffusion"), "--evaluation.count", "20"]
            verb += ["--objective.pixels", "4"]  # ten first images for each
        assert main([*verb, "--stage", stage, "--out", str(tmp_path / stage), *small]) == 0, stage
        assert (tmp_path / stage / "checkpoints" / "step-00000002" / "manifest.json").is_file()


def test_the_three_lines_of_the_page_make_a_network_of_512_pixels(tmp_path: Path) -> None:
    page = (Path(__file__).parents[1] / "docs" / "training.md").read_text()
    mine = tmp_path / "mine.yaml"
    mine.write_text(page.partition("```yaml\n")[2].partition("```")[0])
    for stage in stages_of(str(mine)):
        config = run_config(str(mine), stage)
        assert (config.shift, config.data.image_size // config.model.patch_size) == (8.0, 16)
