from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from epg.config import RunConfig, SamplingConfig
from epg.errors import ArtefactError, OutputError, UserError
from epg.generator import Generator
from epg.info import list_recipes, nfe, print_info
from epg.loading import generator_of, load
from epg.networks import EPG
from epg.networks.build import build_rcm
from epg.objectives.diffusion import Diffusion
from epg.objectives.pretraining import Pretraining
from epg.pictures import grid, save_grid
from epg.recipe import recipe_names, run_config
from epg.sampling import write_samples
from epg.training import checkpoint
from epg.training.ema import EMA
from tests.helpers import run_state, tiny_config, tiny_denoiser, tiny_epg

NAMES = ("cat", "dog", "goldfish")
SAMPLERS = ["heun", "euler", "edm_stochastic", "euler_ancestral", "one_step", "multistep"]


def lively_epg(config: RunConfig, seed: int = 0) -> EPG:
    """Weights so large that the noise decides what the images are."""
    network = tiny_epg(config, seed)
    with torch.no_grad():
        network.encoder.patch_embedding.weight *= 6
        network.decoder.out.weight *= 3
    return network


def tiny_generator(stage: str = "diffusion", seed: int = 0, **changes: Any) -> Generator:
    config = tiny_config(stage, **changes)
    return generator_of(config, lively_epg(config, seed), NAMES if config.model.num_classes else ())


def levels_apart(a: Tensor, b: Tensor) -> int:
    """Largest difference of two uint8 pictures."""
    return int((a.int() - b.int()).abs().max())


LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])


# sample ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["heun", "edm_stochastic"])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_an_image_does_not_depend_on_its_batch(sampler, guidance):
    model = tiny_generator()
    sampling = SamplingConfig(sampler=sampler, steps=6, guidance=guidance)
    whole = model.sample(LABELS, sampling=sampling)
    assert whole.shape == (8, 1, 8, 8)
    assert whole.dtype == torch.uint8
    assert whole.float().std() > 20
    for batch_size in (1, 3, 8):
        assert levels_apart(model.sample(LABELS, sampling=sampling, batch_size=batch_size), whole) <= 1


def test_first_continues_a_seed():
    model = tiny_generator()
    whole = model.sample(LABELS)
    assert levels_apart(model.sample(LABELS[5:], first=5), whole[5:]) <= 1
    assert levels_apart(model.sample(LABELS[:3]), whole[:3]) <= 1


def test_the_seed_decides():
    model = tiny_generator()
    assert torch.equal(model.sample(LABELS, seed=1), model.sample(LABELS, seed=1))
    assert levels_apart(model.sample(LABELS, seed=1), model.sample(LABELS, seed=2)) > 8


def test_images_of_one_seed_differ():
    images = tiny_generator().sample(torch.zeros(8, dtype=torch.long))
    assert all(levels_apart(images[i], images[j]) > 6 for i in range(8) for j in range(i))


def test_sampling_leaves_the_global_generator_alone():
    model, state = tiny_generator(), torch.get_rng_state()
    model.sample(LABELS, sampling=SamplingConfig(sampler="euler_ancestral", steps=3))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("stage", ["diffusion", "consistency"])
def test_every_sampler_runs(stage, sampler):
    images = tiny_generator(stage).sample(LABELS, sampling=SamplingConfig(sampler=sampler, steps=3))
    assert images.shape == (8, 1, 8, 8)
    assert images.float().std() > 10


@pytest.mark.parametrize(
    ("sampler", "evaluations"),
    [("heun", 9), ("euler", 5), ("edm_stochastic", 9), ("euler_ancestral", 5), ("one_step", 1), ("multistep", 5)],
)
def test_count_evaluations(sampler, evaluations):
    assert tiny_generator().count_evaluations(SamplingConfig(sampler=sampler, steps=5)) == evaluations


@pytest.mark.parametrize("shift", [0.5, 1.0, 4.0])
def test_75_evaluations_whatever_the_shift(shift):
    """The interval is stated in unshifted levels."""
    assert tiny_generator(noise={"shift": shift}).count_evaluations(SamplingConfig(guidance=2.0)) == 75


@pytest.mark.parametrize("recipe", [name for name in recipe_names() if name.startswith(("imagenet256", "imagenet512"))])
def test_info_reports_the_paper_figure(recipe):
    assert nfe(run_config(recipe, "diffusion")) == 75
    assert nfe(run_config(recipe, "consistency")) == 1


def test_info(capsys):
    print_info("imagenet256-xl")
    text = capsys.readouterr().out
    for number in ("583.0M", "106.8M", "127.5", "131.3", "75", "258", "1,000,000", "600,000", "700,000"):
        assert number in text, number


@pytest.mark.parametrize("recipe", ["digits", "small", "cifar10", "imagenet64"])
def test_info_of_recipes_that_take_their_classes_from_the_data(recipe, capsys):
    print_info(recipe)
    text = capsys.readouterr().out
    assert all(word in text for word in ("pretraining", "diffusion", "consistency", "NFE"))


def test_every_recipe_is_listed(capsys):
    list_recipes()
    text = capsys.readouterr().out
    assert all(name in text for name in recipe_names())


def test_images_stay_in_the_range_of_pixels_by_clamping():
    """A one-step image is a clamped prediction, so decoding cuts nothing off."""
    model = tiny_generator("consistency", data={"channels": 3, "normalization": "imagenet"})
    with torch.no_grad():
        for parameter in model.denoiser.network.decoder.out.parameters():
            parameter *= 50
    images = model.sample(LABELS)
    assert images.shape == (8, 3, 8, 8)
    assert {0, 255} <= set(images.unique().tolist())


def test_unconditional():
    model = tiny_generator(model={"num_classes": 0})
    assert model.sample(None, 5).shape == (5, 1, 8, 8)
    assert levels_apart(model.sample(None, 5, batch_size=2), model.sample(None, 5)) <= 1
    with pytest.raises(ValueError, match="count"):
        model.sample(None)
    with pytest.raises(UserError, match="unconditional"):
        model.sample(None, 2, sampling=SamplingConfig(guidance=2.0))


@pytest.mark.parametrize("labels", [[3], [-1], [0, 7]])
def test_labels_out_of_range(labels):
    with pytest.raises(UserError, match="between 0 and 2"):
        tiny_generator().sample(torch.tensor(labels))


def test_labels_and_guidance_matter():
    model = tiny_generator()
    a = model.sample(torch.zeros(4, dtype=torch.long))
    assert levels_apart(a, model.sample(torch.ones(4, dtype=torch.long))) > 5
    everywhere = SamplingConfig(steps=4, guidance=3.0, interval=(0.0, 100.0))
    assert levels_apart(a, model.sample(torch.zeros(4, dtype=torch.long), sampling=everywhere)) > 5


def test_autoguidance():
    model, weak = tiny_generator(), tiny_generator(seed=1)
    sampling = SamplingConfig(steps=4, guidance=2.0, interval=(0.0, 100.0))
    guided = model.sample(LABELS, sampling=sampling, guide=weak)
    assert levels_apart(guided, model.sample(LABELS, sampling=sampling)) > 5
    assert levels_apart(model.sample(LABELS, sampling=sampling, guide=model), model.sample(LABELS)) <= 1


def test_progress():
    seen: list[tuple[int, int]] = []
    model = replace(tiny_generator(), sampling=SamplingConfig(sampler="euler", steps=2))
    model.sample(LABELS, batch_size=3, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(3, 8), (6, 8), (8, 8)]
    assert model.count_evaluations(model.sampling) == 2


# make_labels ----------------------------------------------------------------------------------------------------------


def test_labels():
    model = tiny_generator()
    assert model.make_labels(5, balanced=True, seed=0).tolist() == [0, 1, 2, 0, 1]
    assert model.make_labels(5, classes=[2, 0], balanced=True, seed=0).tolist() == [2, 0, 2, 0, 2]
    drawn = model.make_labels(3000, balanced=False, seed=0)
    assert drawn.bincount().tolist() == pytest.approx([1000] * 3, abs=104)  # 4 standard errors
    assert torch.equal(drawn, model.make_labels(3000, balanced=False, seed=0))
    assert not torch.equal(drawn, model.make_labels(3000, balanced=False, seed=1))
    assert torch.equal(drawn[:100], model.make_labels(100, balanced=False, seed=0))
    with pytest.raises(UserError, match="--classes 3: out of range, the model has classes 0 to 2"):
        model.make_labels(5, classes=[0, 3], balanced=True, seed=0)


def test_labels_of_an_unconditional_model():
    model = tiny_generator(model={"num_classes": 0})
    assert model.make_labels(5, balanced=True, seed=0) is None
    with pytest.raises(UserError, match="unconditional"):
        model.make_labels(5, classes=[0], balanced=True, seed=0)


# From a checkpoint ----------------------------------------------------------------------------------------------------


def state_of(config: RunConfig) -> dict[str, Any]:
    names = list(NAMES) if config.model.num_classes else []
    return run_state(config, names)


def save_run(folder: Path, config: RunConfig, seed: int = 0) -> Path:
    """What a run of a tiny diffusion model leaves behind; the EMA of decay 0.5 is of another network."""
    objective = Diffusion(lively_epg(config, seed), config)
    tensors = {"model": objective.state_dict()}
    for decay in config.training.ema:
        source = objective.network if decay == 0.9 else lively_epg(config, seed + 1)
        tensors[f"ema-{decay}"] = EMA(source, [decay]).state_dict(f"ema-{decay}")
    checkpoint.save(folder / "checkpoints", 10, tensors, state_of(config), keep=2)
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return save_run(tmp_path / "run", tiny_config(training={"ema": [0.9, 0.5]}))


def test_load(run):
    model = load(run)
    assert model.class_names == NAMES
    assert not any(module.training for module in model.denoiser.network.modules())
    assert torch.equal(model.sample(LABELS), tiny_generator().sample(LABELS))
    assert torch.equal(load(run / "checkpoints" / "step-00000010").sample(LABELS), model.sample(LABELS))


def test_load_another_decay(run):
    assert torch.equal(load(run, ema=0.5).sample(LABELS), tiny_generator(seed=1).sample(LABELS))
    with pytest.raises(ArtefactError, match=r"no EMA with decay 0\.7; it has \[0\.9, 0\.5\]"):
        load(run, ema=0.7)


def test_load_without_ema_takes_the_trained_weights(tmp_path):
    run = save_run(tmp_path, tiny_config(training={"ema": []}))
    assert torch.equal(load(run).sample(LABELS), tiny_generator().sample(LABELS))


def test_an_encoder_cannot_sample(tmp_path):
    config = tiny_config("pretraining")
    objective = Pretraining(build_rcm(config.model, config.data), config)
    tensors = {"model": objective.state_dict()}
    checkpoint.save(tmp_path / "checkpoints", 1, tensors, state_of(config), keep=2)
    with pytest.raises(ArtefactError, match="a pre-trained encoder cannot sample") as error:
        load(tmp_path)
    assert "epg finetune" in str(error.value)


def test_nothing_to_load(tmp_path):
    with pytest.raises(ArtefactError, match="no checkpoint here"):
        load(tmp_path / "absent")


def test_write_samples(run, tmp_path):
    out = tmp_path / "out"
    write_samples(run, out, count=5, batch_size=2, npz=True, device="cpu", seed=4)
    assert sorted(p.name for p in out.iterdir()) == [*(f"{i:06d}.png" for i in range(5)), "grid.png", "samples.npz"]
    labels = torch.tensor([0, 1, 2, 0, 1])
    expected = load(run).sample(labels, seed=4)
    with np.load(out / "samples.npz") as archive:
        images, classes = archive["arr_0"], archive["arr_1"]
    assert images.shape == (5, 8, 8, 1)
    assert images.dtype == np.uint8
    assert classes.tolist() == labels.tolist()
    assert levels_apart(torch.from_numpy(images).permute(0, 3, 1, 2), expected) <= 1
    for i in range(5):
        picture = Image.open(out / f"{i:06d}.png")
        assert (picture.size, picture.mode) == ((8, 8), "L")
        assert np.array_equal(np.asarray(picture), images[i, :, :, 0])


def test_write_colour_samples_of_an_unconditional_model(tmp_path):
    config = tiny_config(data={"channels": 3}, model={"num_classes": 0})
    write_samples(save_run(tmp_path / "run", config), tmp_path / "out", count=2, npz=True, device="cpu")
    assert Image.open(tmp_path / "out" / "000001.png").mode == "RGB"
    with np.load(tmp_path / "out" / "samples.npz") as archive:
        assert archive.files == ["arr_0"]
        assert archive["arr_0"].shape == (2, 8, 8, 3)


def test_classes_by_name_and_number(run, tmp_path):
    write_samples(run, tmp_path / "a", count=4, classes=["goldfish", "cat"], npz=True, device="cpu")
    write_samples(run, tmp_path / "b", count=4, classes=["2", "0"], npz=True, device="cpu")
    for name in ("a", "b"):
        with np.load(tmp_path / name / "samples.npz") as archive:
            assert archive["arr_1"].tolist() == [2, 0, 2, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": ["goldfsh"]}, "--classes goldfsh: no such class; did you mean goldfish"),
        ({"classes": ["xyzzy"]}, "--classes xyzzy: no such class"),
        ({"classes": ["9"]}, "--classes 9: out of range"),
        ({"classes": ["²"]}, "--classes ²: no such class"),
        ({"count": 0}, "--count 0"),
        ({"batch_size": 0}, "--batch-size 0"),
        ({"changes": {"steps": 1}}, "--steps 1"),
        ({"changes": {"sampler": "one_step"}}, "--sampler one_step: for consistency models"),
        ({"ema": 0.1}, "no EMA with decay 0.1"),
    ],
)
def test_wrong_options(run, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        write_samples(run, tmp_path / "out", **{"count": 2, "device": "cpu", **options})


def test_out_that_is_a_file(run, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(OutputError, match="--out"):
        write_samples(run, tmp_path / "out", count=1, device="cpu")
    assert (tmp_path / "out").read_text() == "mine"


# Pictures -------------------------------------------------------------------------------------------------------------


def test_grid_places_images_in_rows():
    images = (torch.arange(5, dtype=torch.uint8) * 50).view(5, 1, 1, 1).expand(5, 1, 64, 64)
    sheet = grid(images, columns=2, gap=2)
    assert sheet.size == (2 * 66 + 2, 3 * 66 + 2)
    assert [sheet.getpixel((34 + i % 2 * 66, 34 + i // 2 * 66)) for i in range(5)] == [(50 * i,) * 3 for i in range(5)]
    assert sheet.getpixel((0, 0)) == (255, 255, 255)
    assert sheet.getpixel((100, 166)) == (255, 255, 255)  # the empty sixth place


def test_grid_enlarges_small_images_by_whole_factors(tmp_path):
    image = torch.tensor([[0, 255], [255, 0]], dtype=torch.uint8).view(1, 1, 2, 2)
    sheet = np.asarray(grid(image, gap=0))
    assert sheet.shape == (48, 48, 3)
    assert not sheet[:24, :24].any()
    assert (sheet[:24, 24:] == 255).all()
    save_grid(image, tmp_path / "deep" / "er.png")
    assert Image.open(tmp_path / "deep" / "er.png").size == (56, 56)


def test_a_denoiser_is_deterministic():
    x = torch.randn(2, 1, 8, 8)
    denoiser = tiny_denoiser()
    assert torch.equal(denoiser(x, 1.0), denoiser(x, 1.0))
