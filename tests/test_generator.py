import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from epg import pipeline
from epg.checkpoint import saving
from epg.checkpoint.loading import generator_of, load
from epg.checkpoint.loading import read_trained as read_weights
from epg.cli import main
from epg.cli.info import Machine, list_recipes, print_info
from epg.config.recipe import recipe_names, run_config
from epg.config.sections import NoiseConfig, SamplingConfig
from epg.errors import ArtefactError, UserError
from epg.grids import evaluations, grid_of, levels_of
from epg.labels import class_numbers
from epg.networks.build import build_rcm
from epg.networks.precision import to_half_precision
from epg.objectives.pretraining import Pretraining
from epg.sampling.pictures import grid, save_grid
from tests.generators import NAMES, SAMPLERS, levels_apart, lively_epg, save_run, state_of, tiny_generator
from tests.helpers import tiny_config, tiny_denoiser

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


@pytest.mark.parametrize("recipe", ["imagenet256-s", "imagenet256-l", "imagenet256-g", "imagenet512-l"])
def test_info_reports_the_paper_figure(recipe):
    expected = {"diffusion": (63, 12), "consistency": (1, 0)}
    for stage, counts in expected.items():
        config = run_config(recipe, stage)
        assert evaluations(config.sampling, config.noise, config.shift) == counts


@pytest.mark.parametrize("changes", [{}, {"sampler": "multistep", "steps": 3}, {"sampler": "one_step", "steps": 1}])
@pytest.mark.parametrize("given", [None, (5.0, 0.5)])
def test_levels_in_plain_numbers_are_those_that_are_sampled_with(changes, given):
    noise, sampling = NoiseConfig(), SamplingConfig(**changes, levels=given)
    assert levels_of(sampling, noise, 1.5) == pytest.approx(grid_of(sampling, noise, 1.5).tolist(), rel=1e-12)


def test_info(capsys):
    print_info("imagenet256-xl", Machine())
    text = capsys.readouterr().out
    for number in ("583.0M", "106.8M", "127.5", "131.3", "75", "258", "1,000,000", "600,000", "700,000"):
        assert number in text, number


@pytest.mark.parametrize("recipe", ["digits", "small", "cifar10", "imagenet64"])
def test_info_of_recipes_that_take_their_classes_from_the_data(recipe, capsys):
    print_info(recipe, Machine())
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
    model = tiny_generator()
    for call in (model.sample, lambda given: model.draw(given, range(len(labels)))):
        with pytest.raises(UserError, match="between 0 and 2"):
            call(torch.tensor(labels))


@pytest.mark.parametrize("labels", [torch.zeros(3), torch.zeros(2, dtype=torch.long), torch.zeros(3, 1).bool()])
def test_labels_of_another_shape_or_type(labels):
    with pytest.raises(UserError, match="3 integers are expected"):
        tiny_generator().draw(labels, range(3))


def test_labels_of_no_use():
    with pytest.raises(UserError, match="unconditional"):
        tiny_generator(model={"num_classes": 0}).sample(torch.tensor([0]))


def test_small_integers_as_labels():
    model = tiny_generator()
    assert torch.equal(model.sample(LABELS.to(torch.uint8)), model.sample(LABELS))


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


def test_an_unconditional_guide():
    model, weak = tiny_generator(), tiny_generator(seed=1, model={"num_classes": 0})
    sampling = SamplingConfig(steps=4, guidance=2.0, interval=(0.0, 100.0))
    assert levels_apart(model.sample(LABELS, sampling=sampling, guide=weak), model.sample(LABELS)) > 5


def test_evaluations_of_model_and_guide_run_neither():
    model, weak = tiny_generator(), tiny_generator(seed=1)
    for one in (model, weak):
        one.denoiser.register_forward_pre_hook(lambda module, inputs: pytest.fail("evaluated"))
    sampling = SamplingConfig(guidance=2.0)
    assert model.evaluations(sampling, weak) == (63, 12)
    assert model.evaluations(sampling) == (75, 0)
    assert model.count_evaluations(sampling, weak) == 75


# Batches, precision, waiting for the device ---------------------------------------------------------------------------


def shapes_of_calls(model, sampling, guide=None):
    """(level, batch size) of every call of the network while two images are drawn."""
    calls = []
    hook = model.denoiser.register_forward_pre_hook(lambda module, inputs: calls.append((inputs[1], len(inputs[0]))))
    model.draw(LABELS[:2], [0, 1], 0, sampling, guide)
    hook.remove()
    return calls


@pytest.mark.parametrize("sampler", ["heun", "euler", "edm_stochastic", "euler_ancestral"])
def test_both_predictions_share_a_batch_inside_the_interval_alone(sampler):
    model = tiny_generator(noise={"shift": 2.0})
    calls = shapes_of_calls(model, SamplingConfig(sampler=sampler, steps=32, guidance=2.0))
    inside = [sigma for sigma, size in calls if size == 4]
    assert inside == [sigma for sigma, _ in calls if 0.38 < sigma <= 3.22]
    assert 5 < len(inside) < len(calls)
    assert all(size in (2, 4) for _, size in calls)
    autoguided = shapes_of_calls(model, SamplingConfig(sampler=sampler, guidance=2.0), tiny_generator(seed=1))
    assert {size for _, size in autoguided} == {2}


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("stage", ["diffusion", "consistency"])
def test_no_step_waits_for_the_device(stage, sampler):
    """On the meta device nothing can be read back: whatever would make a host wait for a GPU raises there."""
    model = tiny_generator(stage)
    model.denoiser.to("meta")
    sampling = SamplingConfig(sampler=sampler, steps=5, guidance=2.0 if stage == "diffusion" else 1.0)
    assert model.draw(LABELS, range(8), 0, sampling).shape == (8, 1, 8, 8)


def test_a_sampler_that_waits_is_noticed():
    model = tiny_generator()
    model.denoiser.to("meta")

    def waiting(x, sigma):
        denoised = model.denoiser_for()(x, sigma)
        return denoised if denoised.isfinite().all() else x

    with pytest.raises(Exception, match=r"meta|Meta"):
        model.walk(waiting, [0, 1])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_step_synchronises_a_gpu(sampler, dtype):
    model = tiny_generator()
    to_half_precision(model.denoiser, dtype)
    model.denoiser.cuda()
    sampling = SamplingConfig(sampler=sampler, steps=5, guidance=2.0)
    model.draw(LABELS, range(8), 0, sampling)  # first call: pinned memory, handles
    torch.cuda.set_sync_debug_mode("error")
    try:
        values = model.draw(LABELS, range(8), 0, sampling)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert values.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sampler", ["heun", "edm_stochastic"])
def test_half_precision(dtype, sampler):
    sampling = SamplingConfig(sampler=sampler, steps=8, guidance=1.5)
    expected = tiny_generator().sample(LABELS, sampling=sampling)
    model = tiny_generator()
    to_half_precision(model.denoiser.network, dtype)
    assert model.dtype == dtype
    network = model.denoiser.network
    assert network.decoder.blocks[0].mlp.fc1.weight.dtype == dtype
    assert network.encoder.position_embedding.dtype == network.encoder.norm.weight.dtype == torch.float32
    images = model.sample(LABELS, sampling=sampling)
    assert 0 < (images.float() - expected.float()).abs().mean() <= 2
    assert model.draw(LABELS, range(8)).dtype == torch.float32


def test_float64():
    """Networks trained in float64 draw in it."""
    model = tiny_generator()
    expected = model.sample(LABELS)
    model.denoiser.double()
    assert model.draw(LABELS, range(8)).dtype == torch.float64
    assert levels_apart(model.sample(LABELS), expected) <= 1


def test_half_precision_is_that_of_training():
    """Converting the weights beforehand gives what autocast does with float32 weights."""
    model, converted = tiny_generator(), tiny_generator()
    to_half_precision(converted.denoiser.network, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        expected = model.sample(LABELS)
    assert torch.equal(converted.sample(LABELS), expected)


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
    assert set(model.make_labels(100, classes=[2, 0], balanced=False).tolist()) == {0, 2}
    with pytest.raises(UserError, match="--classes 3: out of range, the model has classes 0 to 2"):
        model.make_labels(5, classes=[0, 3], balanced=True, seed=0)


def test_random_labels_follow_the_training_set():
    model = replace(tiny_generator(), class_counts=(700, 200, 100))
    drawn = model.make_labels(10_000, balanced=False)
    assert drawn.bincount().tolist() == pytest.approx([7000, 2000, 1000], abs=184)  # 4 standard errors
    assert torch.equal(drawn[:100], model.make_labels(100, balanced=False))
    some = model.make_labels(3000, classes=[2, 1], balanced=False)
    assert some.bincount().tolist() == pytest.approx([0, 2000, 1000], abs=104)
    assert model.make_labels(6, balanced=True).tolist() == [0, 1, 2, 0, 1, 2]


def test_labels_of_an_unconditional_model():
    model = tiny_generator(model={"num_classes": 0})
    assert model.make_labels(5, balanced=True, seed=0) is None
    with pytest.raises(UserError, match="unconditional"):
        model.make_labels(5, classes=[0], balanced=True, seed=0)


# From a checkpoint ----------------------------------------------------------------------------------------------------


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


def test_load_the_weights_as_trained(run):
    """Those of decay 0.9 in this run are the same network's; the trained ones come without any average."""
    assert read_weights(run, 0).kind == "model"
    assert torch.equal(load(run, ema=0).sample(LABELS), tiny_generator().sample(LABELS))


def test_load_without_ema_takes_the_trained_weights(tmp_path):
    run = save_run(tmp_path, tiny_config(training={"ema": []}))
    assert torch.equal(load(run).sample(LABELS), tiny_generator().sample(LABELS))


def test_an_encoder_cannot_sample(tmp_path):
    config = tiny_config("pretraining")
    objective = Pretraining(build_rcm(config.model, config.data), config)
    tensors = {"model": objective.state_dict()}
    saving.save(tmp_path / "checkpoints", 1, tensors, state_of(config), keep=2)
    with pytest.raises(ArtefactError, match="a pre-trained encoder cannot sample") as error:
        load(tmp_path)
    assert "epg finetune" in str(error.value)


def test_nothing_to_load(tmp_path):
    with pytest.raises(ArtefactError, match="does not exist"):
        load(tmp_path / "absent")


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


# Labels in Python -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "labels",
    [
        [0, 2],
        (0, 2),
        ["cat", "goldfish"],
        ["cat", 2],
        ["0", "2"],
        np.array([0, 2]),
        np.array([0, 2], np.uint8),
        np.array(["cat", "Goldfish"]),
        [np.int64(0), torch.tensor(2)],
        torch.tensor([0, 2], dtype=torch.int32),
    ],
)
def test_labels_may_be_given_in_any_form(labels):
    model = tiny_generator()
    expected = model.sample(torch.tensor([0, 2]), seed=3)
    assert torch.equal(model.sample(labels, seed=3), expected)
    assert torch.equal(model.normalizer.decode(model.draw(labels, range(2), seed=3)), expected)
    assert model.make_labels(4, classes=labels, balanced=True).tolist() == [0, 2, 0, 2]


@pytest.mark.parametrize("label", [2, "goldfish", "2", np.int64(2), torch.tensor(2)])
def test_a_single_label(label):
    model = tiny_generator()
    assert torch.equal(model.sample(label), model.sample(torch.tensor([2])))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([3, 7], "labels 3: out of range, the model has classes 0 to 2"),
        (-1, "labels -1: out of range"),
        (["cow"], "labels cow: no such class .*; there are cat, dog, goldfish"),
        (["gold fish"], "did you mean goldfish"),
        ([0.5], "labels: 0.5 is neither a class number nor a name"),
        ([True], "labels: True is neither"),
        ([[0, 1]], r"labels: \[0, 1\] is neither"),
        (np.array([0.0]), "labels: 0.0 is neither"),
        ([None], "labels: None is neither"),
    ],
)
def test_wrong_labels(labels, message):
    with pytest.raises(UserError, match=message):
        tiny_generator().sample(labels)


def test_an_unconditional_model_without_a_count():
    with pytest.raises(ValueError, match="needs `count`"):
        tiny_generator(model={"num_classes": 0}).sample()
    with pytest.raises(UserError, match="unconditional and takes none"):
        tiny_generator(model={"num_classes": 0}).sample(["cat"])


NUMBERS = tuple(str(i) for i in range(1, 13))  # number 0 is called 1


@pytest.mark.parametrize("wanted", ["1", "2", "11"])
def test_a_number_that_is_also_another_class_s_name(wanted):
    n = int(wanted)
    with pytest.raises(UserError) as error:
        class_numbers([wanted], NUMBERS, 12)
    assert f"class number {n}, which is called '{n + 1}', or number {n - 1}, which is called '{n}'?" in str(error.value)
    assert class_numbers([f"number={n}", f"name={n}", n], NUMBERS, 12) == [n, n - 1, n]


def test_numbers_that_are_not_ambiguous():
    assert class_numbers(["0", "12"], NUMBERS, 12) == [0, 11]  # no class is called 0, and none has number 12
    assert class_numbers(["3", "name=3", "number=3"], [str(i) for i in range(10)], 10) == [3, 3, 3]
    assert class_numbers(["207"]) == [207]


def test_the_command_line_and_the_pipeline_answer_alike(tmp_path, capsys):
    config = tiny_config(model={"num_classes": 12})
    model = generator_of(config, lively_epg(config), NUMBERS)
    pipe = pipeline.EPGPipeline.from_generator(model)
    pipe.save_pretrained(tmp_path / "pipe")
    pipe.set_progress_bar_config(disable=True)
    with pytest.raises(
        ValueError, match="class_labels 2: class number 2, which is called '3', or number 1"
    ) as in_python:
        pipe(["2"])
    assert pipe.get_label_ids(["name=2", "number=2"]) == [1, 2]
    out = tmp_path / "out"
    assert main(["sample", str(tmp_path / "pipe"), "--classes", "0", "1", "2", "--out", str(out)]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "--classes 1: class number 1, which is called '2', or number 0, which is called '1'?" in said
    assert "Pass number=2 or name=2" in str(in_python.value)
    given = ["--classes", "name=1", "number=5", "--count", "4", "--steps", "2", "--out", str(out)]
    assert main(["sample", str(tmp_path / "pipe"), *given]) == 0
    record = json.loads((out / "samples.json").read_text())
    assert (record["classes"], record["class_names"]) == ([0, 5], ["1", "6"])
