"""`EPGPipeline.__call__`: diffusers' habits around the same images that `epg sample` draws."""

import numpy as np
import pytest
import torch
from PIL import Image

from epg.cli import main
from epg.config.sections import SamplingConfig
from epg.pipeline.arguments import requested_generator
from tests.generators import SAMPLERS, levels_apart, save_run, tiny_generator
from tests.helpers import tiny_config
from tests.pipeline.common import LABELS, pixels, tiny_pipeline


def test_the_same_images_as_the_generator():
    expected = tiny_generator().sample(torch.tensor(LABELS), seed=3)
    pipe = tiny_pipeline()
    assert torch.equal(pixels(pipe(LABELS, generator=3).images), expected)
    assert torch.equal(pixels(pipe(torch.tensor(LABELS), generator=torch.Generator().manual_seed(3)).images), expected)
    assert torch.equal(pixels(pipe(["cat", "dog", "goldfish", 0, 1], generator=3).images), expected)


@pytest.mark.parametrize(("sampler", "steps"), [*((s, 3) for s in SAMPLERS[:4]), ("one_step", 1), ("multistep", 3)])
def test_every_sampler_gives_the_generator_s_images(sampler, steps):
    stage = "consistency" if sampler in SAMPLERS[4:] else "diffusion"
    sampling = SamplingConfig(sampler=sampler, steps=steps)
    expected = tiny_generator(stage).sample(torch.tensor(LABELS), sampling=sampling)
    images = tiny_pipeline(stage)(LABELS, generator=0, sampler=sampler, num_inference_steps=steps).images
    assert torch.equal(pixels(images), expected)


def test_guidance_as_the_generator_s():
    sampling = SamplingConfig(steps=6, guidance=3.0, interval=(0.0, 10.0))
    expected = tiny_generator().sample(torch.tensor(LABELS), sampling=sampling)
    pipe = tiny_pipeline()
    settings = {"num_inference_steps": 6, "guidance_scale": 3.0, "generator": 0}
    assert torch.equal(pixels(pipe(LABELS, guidance_interval=(0.0, 10.0), **settings).images), expected)
    assert levels_apart(pixels(pipe(LABELS, **settings).images), expected) > 3  # the interval acts


def test_the_pngs_of_the_command_line(tmp_path):
    run = save_run(tmp_path / "run", tiny_config())
    assert (
        main(["sample", str(run), "--out", str(tmp_path / "out"), "--count", "4", "--seed", "9", "--device", "cpu"])
        == 0
    )
    images = tiny_pipeline()([0, 1, 2, 0], generator=9).images
    for i, image in enumerate(images):
        assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / f"{i:06d}.png")), np.asarray(image))


@pytest.mark.parametrize("sampler", ["heun", "euler_ancestral"])
@pytest.mark.parametrize("make", [lambda: 4, lambda: torch.manual_seed(4), lambda: used_generator()])
def test_an_image_does_not_depend_on_its_batch(sampler, make):
    pipe = tiny_pipeline()
    whole = pixels(pipe(LABELS, generator=make(), sampler=sampler).images)
    for count in (1, 3):
        part = pixels(pipe(LABELS[:count], generator=make(), sampler=sampler).images)
        assert levels_apart(part, whole[:count]) <= 1


def used_generator() -> torch.Generator:
    generator = torch.Generator().manual_seed(4)
    torch.rand(3, generator=generator)
    return generator


def test_first_index_continues_a_seed():
    pipe = tiny_pipeline()
    whole = pixels(pipe(LABELS, generator=4).images)
    assert levels_apart(pixels(pipe(LABELS[3:], generator=4, first_index=3).images), whole[3:]) <= 1


def test_a_generator_moves_on():
    pipe, generator = tiny_pipeline(), torch.Generator().manual_seed(4)
    first, second = (pixels(pipe(LABELS, generator=generator).images) for _ in range(2))
    assert torch.equal(first, pixels(pipe(LABELS, generator=4).images))
    assert levels_apart(first, second) > 8
    again = used_generator()
    assert torch.equal(
        pixels(pipe(LABELS, generator=again).images), pixels(pipe(LABELS, generator=used_generator()).images)
    )


def test_one_generator_for_each_image():
    pipe = tiny_pipeline()
    generators = [torch.Generator().manual_seed(s) for s in (7, 8)]
    images = pixels(pipe([0, 1], generator=generators).images)
    for seed, label, image in ((7, 0, images[0]), (8, 1, images[1])):
        assert levels_apart(pixels(pipe([label], generator=seed).images)[0], image) <= 1
    later = pixels(pipe([1, 0], generator=[torch.Generator().manual_seed(s) for s in (7, 8)], first_index=3).images)
    assert levels_apart(pixels(pipe([0], generator=8, first_index=3).images)[0], later[1]) <= 1
    with pytest.raises(ValueError, match="generator: 2 of them for 3 images"):
        pipe([0, 1, 2], generator=generators)


def test_without_a_generator_torch_s_own_seed_counts():
    pipe = tiny_pipeline()
    torch.manual_seed(11)
    first = pixels(pipe(LABELS).images)
    assert levels_apart(first, pixels(pipe(LABELS).images)) > 8
    torch.manual_seed(11)
    assert torch.equal(first, pixels(pipe(LABELS).images))


def test_latents_are_the_noise_to_start_from():
    pipe, model = tiny_pipeline(), tiny_generator()
    noise = model.unit_noise(range(5), seed=3)
    assert torch.equal(
        pixels(pipe(LABELS, latents=noise).images), pixels(pipe(LABELS, generator=3, sampler="heun").images)
    )
    with pytest.raises(ValueError, match=r"latents: shape \(5, 1, 8, 8\), but \(2, 1, 8, 8\)"):
        pipe([0, 1], latents=noise)


def test_output_types():
    pipe = tiny_pipeline()
    pt, array, latent = (pipe(LABELS, generator=1, output_type=kind).images for kind in ("pt", "np", "latent"))
    assert pt.shape == (5, 1, 8, 8)
    assert array.shape == (5, 8, 8, 1)
    assert torch.equal(torch.from_numpy(array).permute(0, 3, 1, 2), pt)
    assert torch.equal((pt * 255).round().to(torch.uint8), pixels(pipe(LABELS, generator=1).images))
    assert torch.allclose(latent, pt * 2 - 1, atol=1e-6)
    assert isinstance(pipe(LABELS, generator=1, return_dict=False), tuple)
    colour = tiny_pipeline(data={"channels": 3})([0], generator=0).images[0]
    assert (colour.mode, colour.size) == ("RGB", (8, 8))


# Consistency and unconditional models ---------------------------------------------------------------------------------


def test_the_number_of_steps_chooses_the_consistency_sampler():
    pipe = tiny_pipeline("consistency")
    by_name = {"one_step": pixels(pipe(LABELS, generator=2, sampler="one_step").images)}
    by_name["multistep"] = pixels(pipe(LABELS, generator=2, sampler="multistep", num_inference_steps=3).images)
    assert torch.equal(pixels(pipe(LABELS, generator=2).images), by_name["one_step"])
    assert torch.equal(pixels(pipe(LABELS, generator=2, num_inference_steps=1).images), by_name["one_step"])
    assert torch.equal(pixels(pipe(LABELS, generator=2, num_inference_steps=3).images), by_name["multistep"])


def test_an_unconditional_model():
    pipe = tiny_pipeline(model={"num_classes": 0})
    expected = tiny_generator(model={"num_classes": 0}).sample(count=3, seed=6)
    assert torch.equal(pixels(pipe(batch_size=3, generator=6).images), expected)
    assert len(pipe(generator=6).images) == 1
    assert pipe.transformer.class_embedding is None


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "this model has 3 classes"),
        ({"class_labels": [3]}, "class_labels 3: out of range, the model has classes 0 to 2"),
        ({"class_labels": 1000}, "class_labels 1000: out of range"),
        ({"class_labels": [-1]}, "class_labels -1: out of range"),
        ({"class_labels": [True]}, "class_labels: True"),
        ({"class_labels": torch.tensor([0.5])}, "class_labels: 0.5"),
        ({"class_labels": []}, "class_labels, batch_size: nothing is asked for"),
        ({"class_labels": "cow"}, "class_labels cow: no such class"),
        ({"class_labels": [0], "batch_size": 2}, "batch_size 2: there are 1"),
        ({"class_labels": [0], "num_inference_steps": 1}, "num_inference_steps 1: must be between 2 and 10000"),
        ({"class_labels": [0], "sampler": "ddim"}, "sampler ddim: choose one of heun"),
        ({"class_labels": [0], "sampler": "one_step"}, "for one-step models"),
        ({"class_labels": [0], "output_type": "jpeg"}, "output_type 'jpeg'"),
        ({"class_labels": [0], "guidance_interval": (2.0, 1.0)}, "guidance_interval"),
        ({"class_labels": [0], "sigmas": [1.0, 2.0]}, "sigmas 1 2: must fall, between 80 and 0.002"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny_pipeline()(**arguments)


def test_arguments_that_do_not_fit_the_model():
    with pytest.raises(ValueError, match="trained without label dropping"):
        tiny_pipeline("consistency")([0], guidance_scale=2.0)
    unconditional = tiny_pipeline(model={"num_classes": 0})
    with pytest.raises(ValueError, match="is unconditional; leave it at 1"):
        unconditional(guidance_scale=4.0)
    with pytest.raises(ValueError, match="this model is unconditional; pass batch_size"):
        unconditional([0])


def test_labels_by_name():
    pipe = tiny_pipeline()
    assert pipe.get_label_ids(["goldfish", "cat"]) == [2, 0]
    assert pipe.get_label_ids("goldfish") == [2]
    with pytest.raises(ValueError, match="class_labels gold: no such class; did you mean goldfish"):
        pipe.get_label_ids("gold")


def test_synonyms_of_a_class():
    pipe = type(tiny_pipeline())(tiny_pipeline().transformer, id2label={0: "tench, Tinca tinca", 1: "hen"})
    assert pipe.get_label_ids(["Tinca tinca", "tench", "tench, Tinca tinca", "hen"]) == [0, 0, 0, 1]


# Steps ----------------------------------------------------------------------------------------------------------------


def test_callback_sees_every_step_and_may_change_the_image():
    pipe, seen = tiny_pipeline(), []

    def look(pipe, step, sigma, tensors):
        seen.append((step, sigma, set(tensors)))
        return {}

    plain = pipe(LABELS, generator=1, output_type="pt", callback_on_step_end=look).images
    assert [step for step, _, _ in seen] == [0, 1, 2, 3]
    assert seen[0][1] == pytest.approx(80.0)
    assert all(names == {"latents"} for *_, names in seen)

    def black(pipe, step, sigma, tensors):
        return {"latents": torch.full_like(tensors["latents"], -1.0)} if step == 3 else {}

    changed = pipe(LABELS, generator=1, output_type="pt", callback_on_step_end=black).images
    assert not changed.any()
    assert plain.any()
    with pytest.raises(ValueError, match="choose latents or denoised"):
        pipe(LABELS, callback_on_step_end=look, callback_on_step_end_tensor_inputs=["noise"])


def test_progress_bar(capsys):
    pipe = tiny_pipeline()
    pipe(LABELS, generator=1)
    assert capsys.readouterr().err == ""
    pipe.set_progress_bar_config(desc="drawing")
    pipe(LABELS, generator=1)
    assert "drawing: 100%" in capsys.readouterr().err


def test_the_smallest_level_is_shifted_too():
    """Where a consistency model is the identity, as it was in training; pictures would hardly show another one."""
    pipe = tiny_pipeline("consistency", noise={"shift": 0.25})
    drawn = requested_generator(pipe.transformer, pipe.config, {}, [(0, range(1))], None, torch.device("cpu"))
    x = torch.rand(1, 1, 8, 8)
    assert torch.equal(drawn.denoiser(x, 0.25 * 0.002, torch.tensor([0])), x)
