"""`epg sample`: what lands in the folder, and which requests are refused."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from epg.checkpoint.checkpoint import read
from epg.checkpoint.loading import load
from epg.cli import main
from epg.config.sections import SamplingConfig
from epg.errors import ArtefactError, DivergedError, OutputError, UserError
from epg.sampling import Request, changed, class_numbers, fitted, write_samples
from epg.sampling.files import png, write_npz
from epg.sampling.interpolation import interpolated, on_sphere
from epg.sampling.job import Job
from tests.generators import levels_apart, save_export, save_run, tiny_generator
from tests.helpers import tiny_config


def sample(run: Path, out: Path, **options: Any) -> Path:
    write_samples(run, out, Request(**{"count": 5, "batch_size": 2, "device": "cpu", **options}))
    return out


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("sampling") / "run", tiny_config(training={"ema": [0.9, 0.5]}))


def arrays(out: Path) -> dict[str, Any]:
    with np.load(out / "samples.npz") as archive:
        return dict(archive)


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.iterdir() if p.name != "run.lock"}


# Files ----------------------------------------------------------------------------------------------------------------


def test_files_of_a_run(run, tmp_path, capsys):
    out = sample(run, tmp_path / "out", npz=True, seed=4)
    files = sorted(p.name for p in out.iterdir())
    assert files == [*(f"{i:06d}.png" for i in range(5)), "grid.png", "run.lock", "samples.json", "samples.npz"]
    labels = torch.tensor([0, 1, 2, 0, 1])
    expected = load(run).sample(labels, seed=4)
    images, classes = arrays(out)["arr_0"], arrays(out)["arr_1"]
    assert (images.shape, images.dtype, images.flags.c_contiguous) == ((5, 8, 8, 1), np.uint8, True)
    assert (classes.tolist(), classes.dtype) == (labels.tolist(), np.int64)
    assert levels_apart(torch.from_numpy(images).permute(0, 3, 1, 2), expected) <= 1
    for i in range(5):
        picture = Image.open(out / f"{i:06d}.png")
        assert (picture.size, picture.mode, picture.info) == ((8, 8), "L", {})
        assert np.array_equal(np.asarray(picture), images[i, :, :, 0])
    said = capsys.readouterr()
    assert "heun, 7 network evaluations" in said.err
    assert "all 3 classes in turn" in said.err
    assert "5 images in" in said.out
    record = json.loads((out / "samples.json").read_text())
    assert (record["nfe"], record["count"], record["seed"]) == (7, 5, 4)
    macs = 64 * 4 / 4  # the patch embedding alone is more than that
    assert record["gflops"] > 7 * macs / 1e9


def test_a_compiled_model_meets_one_size_of_batch(run, tmp_path):
    """The last batch is filled up, which changes nothing in the images that were asked for."""
    sizes = set()

    pictures = []
    with torch.compiler.set_stance("force_eager"):
        for way in ("plain", "compile", "cuda_graphs"):
            sizes.clear()
            options = {"count": 5, "batch_size": 2, "device": "cpu", "changes": {"guidance": 1.0}}
            job = Job(fitted(load(run), Request(**options, **({} if way == "plain" else {way: True}))), tmp_path / way)
            network = job.model.denoiser.network
            assert job.record["compile"] == (way != "plain")
            assert (network._compiled_call_impl is not None) == (way == "cuda_graphs")
            network.register_forward_pre_hook(lambda _, inputs: sizes.add(len(inputs[0])))
            pictures.append(torch.cat([job.draw_batch(range(i, min(i + 2, 5)))[0] for i in (0, 2, 4)]))
    assert sizes == {2}
    assert [len(batch) for batch in pictures] == [5, 5, 5]
    assert all(int((pictures[0].int() - other.int()).abs().max()) <= 1 for other in pictures[1:])


def test_colour_samples_of_an_unconditional_model(tmp_path, capsys):
    config = tiny_config(data={"channels": 3}, model={"num_classes": 0})
    out = sample(save_run(tmp_path / "run", config), tmp_path / "out", npz=True, animation="webp", labels="random")
    assert Image.open(out / "000001.png").mode == "RGB"
    assert list(arrays(out)) == ["arr_0"]
    assert arrays(out)["arr_0"].shape == (5, 8, 8, 3)
    assert "labels: none" in capsys.readouterr().err
    with pytest.raises(UserError, match="--classes: this model is unconditional"):
        sample(tmp_path / "run", tmp_path / "other", classes=["0"])


def test_a_finished_folder_is_left_alone(run, tmp_path, capsys):
    out = sample(run, tmp_path / "out", npz=True, animation="gif")
    before = contents(out)
    capsys.readouterr()
    sample(run, out, npz=True, animation="gif")
    assert contents(out) == before
    assert "images/s" not in capsys.readouterr().out


def test_more_images_continue_a_folder(run, tmp_path):
    out = sample(run, tmp_path / "out", npz=True, count=4)
    before = contents(out)
    sample(run, out, npz=True, count=7)
    after = contents(out)
    assert all(after[f"{i:06d}.png"] == before[f"{i:06d}.png"] for i in range(4))
    assert arrays(out)["arr_1"].tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert len(arrays(out)["arr_0"]) == 7
    assert after["grid.png"] != before["grid.png"]
    assert json.loads(after["samples.json"][0])["count"] == 7
    with pytest.raises(UserError, match=r"--count 5: .* was begun for 7"):
        sample(run, out)


@pytest.mark.parametrize("damage", [b"", b"\x89PNG\r\n\x1a\n", None])
def test_a_missing_or_torn_image_is_drawn_again(run, tmp_path, damage):
    out = sample(run, tmp_path / "out")
    whole = contents(out)
    file = out / "000003.png"
    file.unlink() if damage is None else file.write_bytes(damage)
    (out / ".000004.png.epg-0123abcd.tmp").write_bytes(b"rest of a kill")
    sample(run, out)
    assert {name: content for name, (content, _) in contents(out).items()} == {n: c for n, (c, _) in whole.items()}
    assert all(whole[n] == found for n, found in contents(out).items() if n != file.name)


def test_an_image_that_is_no_picture_is_named(run, tmp_path):
    out = sample(run, tmp_path / "out")
    good = (out / "000002.png").read_bytes()
    (out / "000002.png").write_bytes(good[:50] + bytes(8) + good[58:])
    with pytest.raises(ArtefactError, match=r"000002\.png: damaged .* Remove it"):
        sample(run, out, npz=True)
    assert not (out / "samples.npz").exists()
    (out / "000002.png").write_bytes(png(np.zeros((9, 8, 1), np.uint8)))
    with pytest.raises(ArtefactError, match=r"000002\.png: .*shape \(9, 8, 1\)"):
        sample(run, out, npz=True)


def test_the_npz_is_assembled_in_bounded_memory(tmp_path):
    shape, count = (64, 64, 3), 300
    noise = np.random.default_rng(0).integers(256, size=(8, *shape), dtype=np.uint8)
    files = [tmp_path / f"{i}.png" for i in range(count)]
    for i, file in enumerate(files):
        file.write_bytes(png(noise[i % 8]))
    tracemalloc.start()
    write_npz(tmp_path / "samples.npz", files, shape, np.arange(count))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < count * 64 * 64 * 3 / 2
    assert np.array_equal(arrays(tmp_path)["arr_0"][10:18], np.roll(noise, -2, axis=0))


@pytest.mark.parametrize("kind", ["gif", "png", "webp"])
def test_animation(run, tmp_path, kind):
    out = sample(run, tmp_path / "out", animation=kind, count=6)
    picture = Image.open(out / f"animation.{kind}")
    frames = [np.asarray(frame.convert("RGB"), int) for frame in ImageSequence.Iterator(picture)]
    assert len(frames) == 4  # one per level
    half = frames[0].shape[1] // 2
    last = np.asarray(Image.open(out / "000000.png"), int)
    shown = frames[-1][14 + 4 : 14 + 52 : 6, half + 4 : half + 52 : 6, 0]
    assert np.abs(shown - last).max() <= (8 if kind == "gif" else 1)
    assert np.abs(frames[0] - frames[-1])[20:, :half].mean() > 10


def test_animation_of_one_step(tmp_path):
    run = save_export(tmp_path / "export", tiny_config("consistency"))
    out = sample(run, tmp_path / "out", animation="png")
    assert getattr(Image.open(out / "animation.png"), "n_frames", 1) == 1


# Labels ---------------------------------------------------------------------------------------------------------------


def test_classes_by_name_and_number(run, tmp_path):
    for name, classes in [("a", ["goldfish", "cat"]), ("b", ["2", "0"]), ("c", ["GoldFish", "CAT"])]:
        assert arrays(sample(run, tmp_path / name, classes=classes, npz=True))["arr_1"].tolist() == [2, 0, 2, 0, 2]


IMAGENET = [
    "tench, Tinca tinca",
    "goldfish, Carassius auratus",
    "crane",
    "golden retriever",
    "crane, lifting machine",
    "black_swan",
]


@pytest.mark.parametrize(
    ("wanted", "number"),
    [
        ("tench", 0),
        ("Tinca tinca", 0),
        ("carassius  AURATUS", 1),
        ("goldfish, Carassius auratus", 1),
        ("crane", 2),
        ("Golden Retriever", 3),
        ("golden_retriever", 3),
        ("black swan", 5),
        ("207", 207),
    ],
)
def test_synonyms(wanted, number):
    assert class_numbers([wanted], IMAGENET) == [number]


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ("golden retreiver", ["no such class", "did you mean golden retriever"]),
        ("Carasius auratus", ["did you mean Carassius auratus"]),
        ("xyzzy", ["no such class (a name"]),
        ("²", ["no such class"]),
        ("9" * 5000, ["no such class"]),
        ("", ["no such class"]),
    ],
)
def test_unknown_classes(wanted, words):
    with pytest.raises(UserError) as error:
        class_numbers([wanted], IMAGENET)
    assert all(word in str(error.value) for word in words)


def test_an_ambiguous_name_wants_a_number():
    with pytest.raises(UserError, match=r"2 classes have this name .*0 is 'crane, bird'; 1 is 'crane, machine'"):
        class_numbers(["crane"], ["crane, bird", "crane, machine"])


def test_random_labels(run, tmp_path, capsys):
    labels = arrays(sample(run, tmp_path / "out", labels="random", npz=True, count=30))["arr_1"]
    assert labels.tolist() == load(run).make_labels(30, balanced=False).tolist()
    assert set(labels) == {0, 1, 2}
    assert "at random, all equally likely" in capsys.readouterr().err


# Refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": ["goldfsh"]}, "--classes goldfsh: no such class; did you mean goldfish"),
        ({"classes": ["9"]}, "--classes 9: out of range"),
        ({"count": 0}, "--count 0"),
        ({"batch_size": 0}, "--batch-size 0"),
        ({"changes": {"steps": 1}}, "--steps 1"),
        ({"changes": {"steps": 10**9}}, "--steps 1000000000"),
        ({"changes": {"guidance": float("nan")}}, "--guidance nan"),
        ({"changes": {"guidance": -1.0}}, "--guidance -1"),
        ({"changes": {"interval": (2.0, 1.0)}}, "--interval 2.0 1.0"),
        ({"changes": {"interval": (float("nan"), 1.0)}}, "--interval nan"),
        ({"changes": {"sampler": "one_step"}}, "--sampler one_step: for one-step models"),
        ({"ema": 0.1}, "no EMA with decay 0.1"),
        ({"device": "warp"}, "--device warp"),
        ({"device": "cuda:77"}, "--device cuda:77"),
    ],
)
def test_wrong_options(run, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        sample(run, tmp_path / "out", **options)
    assert not list(tmp_path.rglob("*.png"))


def test_out_that_is_a_file(run, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(OutputError, match="--out"):
        sample(run, tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 1}, ["seed: 0 -> 1"]),
        ({"changes": {"steps": 5}}, ["sampling:", "'steps': 5"]),
        ({"changes": {"guidance": 2.0}}, ["'guidance': 2.0"]),
        ({"classes": ["cat"]}, ["classes: [] -> [0]"]),
        ({"labels": "random"}, ["labels: balanced -> random"]),
        ({"dtype": "bf16"}, ["dtype: fp32 -> bf16"]),
        ({"ema": 0.5}, ["weights:"]),
    ],
)
def test_other_settings_are_refused(run, tmp_path, change, words):
    out = sample(run, tmp_path / "out")
    before = contents(out)
    with pytest.raises(UserError, match="was begun with other settings") as error:
        sample(run, out, **change)
    assert all(word in str(error.value) for word in words)
    assert contents(out) == before


def test_settings_that_change_rounding_alone_are_noted(run, tmp_path, capsys):
    out = sample(run, tmp_path / "out")
    sample(run, out, batch_size=3, count=8)
    said = capsys.readouterr().err
    assert "may differ in rounding" in said
    assert "batch_size: 2 -> 3" in said


def test_the_same_weights_elsewhere_are_the_same(run, tmp_path):
    out = sample(run, tmp_path / "out")
    before = contents(out)
    sample(read(run / "checkpoints" / "step-00000010").path, out)
    assert contents(out) == before


def test_pictures_of_something_else_are_refused(run, tmp_path):
    Image.new("L", (3, 3)).save(tmp_path / "000000.png")
    with pytest.raises(UserError, match=r"holds pictures already \(000000\.png\)"):
        sample(run, tmp_path)
    assert Image.open(tmp_path / "000000.png").size == (3, 3)


@pytest.mark.parametrize("record", ["", "{", "[]", "{}", '{"format": 99, "count": 5}'])
def test_a_broken_record_is_refused(run, tmp_path, record):
    out = sample(run, tmp_path / "out")
    (out / "samples.json").write_text(record)
    with pytest.raises(ArtefactError, match=r"samples\.json"):
        sample(run, out)


def test_autoguidance_through_the_command(run, tmp_path, capsys):
    weak = save_run(tmp_path / "weak", tiny_config(), seed=3)
    guided = sample(run, tmp_path / "guided", guide=weak, changes={"guidance": 3.0, "interval": (0.0, 100.0)})
    plain = sample(run, tmp_path / "plain")
    assert (guided / "000000.png").read_bytes() != (plain / "000000.png").read_bytes()
    assert "heun, 14 network evaluations" in capsys.readouterr().err
    with pytest.raises(UserError, match="--guide: does nothing without --guidance"):
        sample(run, tmp_path / "no", guide=weak)
    for other, words in [({"data": {"image_size": 16}}, "image size 8 and 16"), ({"noise": {"shift": 2.0}}, "shift")]:
        guide = save_run(tmp_path / words[:4], tiny_config(**other))
        with pytest.raises(UserError, match=f"--guide: does not fit the checkpoint: .*{words}"):
            sample(run, tmp_path / "no", guide=guide, changes={"guidance": 3.0})


def test_values_that_are_not_finite_are_no_images(run, tmp_path, monkeypatch):
    model = load(run)
    with torch.no_grad():
        model.denoiser.network.decoder.out.bias += float("nan")
    job = Job(fitted(model, Request(count=5, batch_size=2, device="cpu")), tmp_path / "out")
    with pytest.raises(DivergedError, match="images 0 to 1: values that are not finite"):
        job.draw()
    assert not list((tmp_path / "out").glob("*.png"))


# Consistency models ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def consistency_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("consistency") / "export"
    return save_export(folder, tiny_config("consistency", noise={"shift": 1.0}))


@pytest.mark.parametrize(
    ("flags", "levels"),
    [
        ([], [80.0]),
        (["--steps", "1"], [80.0]),
        (["--steps", "2"], [80.0, 2.515]),
        (["--sampler", "multistep"], [80.0, 2.515]),
        (["--steps", "3"], [80.0, 9.72, 0.4698]),
        (["--levels", "80", "0.8", "0.2"], [80.0, 0.8, 0.2]),
        (["--levels", "60"], [60.0]),
    ],
)
def test_levels_of_a_consistency_model(consistency_run, tmp_path, capsys, flags, levels):
    """N steps are the first N levels of the Karras grid of N + 1: the last one, sigma_min, would change nothing."""
    assert main(["sample", str(consistency_run), "--count", "2", "--out", str(tmp_path / "out"), *flags]) == 0
    record = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert (record["nfe"], record["sampling"]["steps"]) == (len(levels), len(levels))
    assert f"{len(levels)} network evaluations" in capsys.readouterr().err
    sampling = SamplingConfig(**record["sampling"])
    assert load(consistency_run).sigmas(sampling).tolist() == pytest.approx([*levels, 0.0], rel=1e-3)


def test_every_step_of_a_consistency_model_changes_the_images(consistency_run):
    model = load(consistency_run)
    images = [model.sample(torch.zeros(4, dtype=torch.long), sampling=changed(model, {"steps": n})) for n in (1, 2, 3)]
    assert not torch.equal(images[0], images[1])
    assert not torch.equal(images[1], images[2])


def test_levels_of_a_diffusion_model(run, tmp_path):
    given = ["--levels", "80", "5", "0.5", "0.01"]
    assert main(["sample", str(run), "--count", "2", "--out", str(tmp_path / "out"), *given]) == 0
    record = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert (record["nfe"], record["sampling"]["levels"]) == (7, [80, 5, 0.5, 0.01])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--sampler", "heun"],
            "--sampler heun: for diffusion models; this is a one-step model, which takes one_step",
        ),
        (["--sampler", "edm_stochastic"], "--sampler edm_stochastic: for diffusion models"),
        (["--sampler", "one_step", "--steps", "2"], "--steps 2: one_step is 1 step; --sampler multistep takes several"),
        (["--steps", "0"], "--steps 0: must be between 1 and 10000"),
        (["--levels", "2", "80"], "--levels 2 80: must fall, between 80 and 0.002"),
        (["--levels", "80", "0"], "--levels 80 0: must fall, between 80 and 0.002"),
        (["--levels", "inf"], "--levels inf: must fall, between 80 and 0.002"),
        (["--levels", "80", "80"], "--levels 80 80: must fall, between 80 and 0.002, the model's noise"),
        (["--levels", "81"], "--levels 81: must fall, between 80 and 0.002"),
        (["--levels", "nan"], "--levels nan: must fall"),
        (["--sampler", "one_step", "--levels", "80", "2"], "--levels: 2 of them: one_step is 1 step"),
        (["--guidance", "2"], "--guidance 2: this model is trained without label dropping; leave it at 1"),
    ],
)
def test_what_a_consistency_model_does_not_take(consistency_run, tmp_path, capsys, flags, message):
    assert main(["sample", str(consistency_run), "--count", "2", "--out", str(tmp_path / "out"), *flags]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_a_guide_acts_at_every_level_unless_an_interval_is_given(run, tmp_path):
    """As published autoguidance; classifier-free guidance keeps the recipe's interval."""
    for flags, nfe in ([], 2 * 7), (["--interval", "0.19", "1.61"], 7 + 2):
        out = tmp_path / str(nfe)
        options = ["--guide", str(run), "--guidance", "1.5", "--steps", "4", "--count", "2", *flags]
        assert main(["sample", str(run), "--out", str(out), *options]) == 0
        assert json.loads((out / "samples.json").read_text())["nfe"] == nfe


# Between images -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["heun", "euler_ancestral"])
def test_a_strip_leads_from_image_to_image(sampler):
    """Its ends are the images themselves; what is between is of neither, and of the right length."""
    model = tiny_generator(sampling={"sampler": sampler, "steps": 3})
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    plain = model.sample(labels, seed=4)
    strip = interpolated(model, labels, 3, row=3, rows=2, seed=4).unflatten(0, (2, 9))
    for r in range(2):
        assert levels_apart(strip[r, [0, 4, 8]], plain[3 * r : 3 * r + 3]) <= 1
        steps = (strip[r, 1:].int() - strip[r, :-1].int()).abs().amax((1, 2, 3))
        assert steps.min() > 0
    unconditional = tiny_generator(model={"num_classes": 0})
    assert interpolated(unconditional, None, 1, row=2).shape == (3, 1, 8, 8)


def test_noise_between_two_is_noise():
    a, b = torch.randn(2, 50, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for fraction in (0.0, 0.3, 0.5, 1.0):
        between = on_sphere(a, b, torch.full((50,), fraction))
        assert 0.95 < between.std() < 1.05
    assert torch.equal(on_sphere(a, b, torch.zeros(50)), a)
    assert torch.equal(on_sphere(a, b, torch.ones(50)), b)
    assert torch.allclose(on_sphere(a, a, torch.full((50,), 0.3)), a, atol=1e-6)


def test_a_gallery_shows_the_same_noise_at_every_scale(tmp_path, capsys):
    """A row for each class; at the scale of the command its images are those of the plain one."""
    run = save_run(tmp_path / "run", tiny_config())
    out = tmp_path / "out"
    drawn = ["--steps", "2", "--interval", "0", "80", "--count", "4", "--classes", "cat", "dog"]
    flags = ["sample", str(run), *drawn, "--out", str(out)]
    assert main([*flags, "--guidance", "2", "--scales", "1", "2", "3"]) == 0
    images = [np.asarray(Image.open(out / f"{i:06d}.png")) for i in range(4)]
    with Image.open(out / "gallery-1-2-3.png") as picture:
        pixels = np.asarray(picture.convert("L"))
    step = 2 * 52 + 4 + 6  # two images and the space behind them
    assert pixels.shape == (16 + 2 * 52 + 4, pixels.shape[1])
    left = pixels.shape[1] - 3 * step
    tiles = {
        (scale, row, i): pixels[20 + 52 * row :, left + scale * step + 4 + 52 * i :][:48:6, :48:6]
        for scale in range(3)
        for row in range(2)
        for i in range(2)
    }
    for row in range(2):
        for i in range(2):
            assert np.array_equal(tiles[1, row, i], images[2 * i + row]), "classes come in turn"
            assert not np.array_equal(tiles[0, row, i], tiles[1, row, i])
            assert not np.array_equal(tiles[2, row, i], tiles[1, row, i])
    assert (pixels[:16, left:] < 128).any(), "scales are written above"
    assert (pixels[16:, :left] < 128).any(), "and classes beside"
    assert main([*flags[:-1], str(tmp_path / "none"), "--scales", "-1"]) == 2
    assert "--scales -1" in capsys.readouterr().err


def test_interpolate_on_the_command_line(tmp_path, capsys):
    run = save_run(tmp_path / "run", tiny_config())
    out = str(tmp_path / "out")
    flags = ["sample", str(run), "--steps", "2", "--out", out, "--interpolate", "2"]
    assert main([*flags, "--count", "1"]) == 2
    assert "--interpolate: leads from image to image; --count must be at least 2" in capsys.readouterr().err
    assert main([*flags, "--count", "6", "--classes", "cat", "dog"]) == 0
    with Image.open(tmp_path / "out" / "between-2.png") as strip:
        assert strip.size == (4 * 52 + 4, 3 * 52 + 4)
