"""The package in Python: labels in any form, denoising and features by hand, and types that a user's mypy sees."""

import re
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

import epg
from epg.cli import main
from epg.config.recipe import run_config
from epg.data.configured import training_data_in_memory
from epg.errors import ArtefactError, UserError
from epg.evaluation.noisy_features import open_encoder
from epg.runs import train
from epg.samplers import euler
from tests.generators import save_run, tiny_generator
from tests.helpers import tiny_config
from tests.training.test_loop import tiny as tiny_digits

ROOT = Path(__file__).parents[1]
HALVES = {"cat": 0.5, "goldfish": 0.5}


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)


# Labels ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parameterization", ["x", "spectral"])
def test_all_weight_on_a_class_is_that_class(parameterization):
    """To the bit, also with guidance, whose other half has no class, and with a Gaussian for every class."""
    sampling = {"guidance": 2.0, "interval": (0.0, 100.0)}
    model = tiny_generator(objective={"parameterization": parameterization}, sampling=sampling)
    if spectrum := model.denoiser.network.spectrum:
        spectrum.mean.copy_(model.unit_noise(range(4)))
        spectrum.variance *= torch.rand(4, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    expected = model.sample([0, 2], seed=3)
    assert same(model.sample([{"cat": 1.0}, "goldfish"], seed=3), expected)
    assert same(model.sample(torch.eye(3)[[0, 2]], seed=3), expected)
    assert same(model.sample(np.eye(3)[[0, 2]], seed=3), expected)
    mixed = model.sample([HALVES, {"0": 0.5, "2": 0.5}], seed=3)
    assert same(mixed[:1], model.sample(HALVES, seed=3))
    assert not same(mixed, expected)


def test_a_mixture_is_that_of_the_rows_of_the_class_table():
    network = tiny_generator().denoiser.network
    table = network.class_embedding.weight
    mixed = network.embed_labels(torch.tensor([[0.25, 0.0, 0.75, 0.0]]), 1)
    assert torch.allclose(mixed[0], 0.25 * table[0] + 0.75 * table[2], atol=1e-7)


def test_one_label_for_all():
    model = tiny_generator()
    assert same(model.sample("dog", 3), model.sample([1, 1, 1]))
    assert same(model.sample(HALVES, 2), model.sample([HALVES, HALVES]))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"cat": 0.5, "dog": 0.6}, "of an image add up to 1"),
        ({"cat": 1.5, "dog": -0.5}, "must not be negative"),
        ({"cow": 1.0}, "labels cow: no such class"),
        (torch.full((2, 2), 0.5), r"2 integers are expected, or weights \(2, 3\), not \(2, 2\)"),
        (torch.tensor([[float("nan"), 0.5, 0.5]]), "add up to 1"),
    ],
)
def test_wrong_mixtures(labels, message):
    with pytest.raises(UserError, match=message):
        tiny_generator().sample(labels)


# Denoising by hand ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_sampler_of_ones_own_around_denoise(guidance):
    model = tiny_generator(sampling={"sampler": "euler", "guidance": guidance, "interval": (0.0, 100.0)})
    labels, sigmas = ["cat", HALVES], model.sigmas()
    x = model.unit_noise(range(2), seed=5) * float(sigmas[0])
    values = euler(lambda x, sigma: model.denoise(x, sigma, labels, guidance=guidance), x, sigmas)
    assert int((model.decode(values).int() - model.sample(labels, seed=5).int()).abs().max()) <= 1
    each = torch.tensor([0.5, 2.0])
    together = model.denoise(x, each, labels, guidance=guidance)
    for i in range(2):
        alone = model.denoise(x[i : i + 1], float(each[i]), labels[i : i + 1], guidance=guidance)
        assert torch.allclose(together[i : i + 1], alone, atol=1e-5)


def test_denoise_gives_gradients_and_refuses_what_does_not_fit():
    model = tiny_generator()
    x = (0.3 * model.unit_noise([0])).requires_grad_()
    model.denoise(x, 0.3, "cat").square().sum().backward()
    assert x.grad is not None
    assert x.grad.abs().max() > 0
    for call, message in [
        (lambda: model.denoise(torch.zeros(1, 3, 8, 8), 1.0, "cat"), r"x: shape \(1, 3, 8, 8\), but \(N, 1, 8, 8\)"),
        (lambda: model.denoise(x, 1.0, ["cat", "dog"]), "1 integers are expected"),
        (lambda: model.denoise(x, 1.0, guidance=2.0), "guidance 2: needs labels"),
    ]:
        with pytest.raises(UserError, match=message):
            call()


# Features -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["pretraining", "diffusion"])
def test_features_are_those_that_probes_and_judges_see(stage, tmp_path):
    """Of a run of either stage: at a level, of the images with the noise in them, all tokens."""
    if stage == "pretraining":
        train(tiny_digits(stage, training={"steps": 2}), tmp_path)
        with pytest.raises(ArtefactError, match=r"epg\.load\(\.\.\., encoder=True\)"):
            epg.load(tmp_path)
    else:
        save_run(tmp_path, tiny_config(noise={"shift": 2.0}))
    encoder, probed = epg.load(tmp_path, encoder=True), open_encoder(tmp_path)
    images = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    sigma = encoder.shift * 0.7
    tokens = encoder.features(encoder.normalizer.encode(images) + sigma * noise, sigma)
    assert tokens.shape[:2] == (5, encoder.network.num_tokens)
    for pool, ours in (("cls", tokens[:, 0]), ("patches", tokens[:, 2:].mean(1))):
        assert np.allclose(ours, probed.features(images, noise, 0.7, pool), atol=1e-5)
    drawn = encoder.features(images, sigma)
    assert same(encoder.features(images[2:], sigma, first=2), drawn[2:])
    assert not same(encoder.features(images, sigma, seed=1), drawn)
    if stage == "diffusion":
        assert same(epg.load(tmp_path).features(images, sigma), drawn)
    with pytest.raises(UserError, match=r"images: shape \(5, 8, 8\), but \(N, 1, 8, 8\)"):
        encoder.features(images[:, 0], sigma)


# What a user's tools see ----------------------------------------------------------------------------------------------

USER = """
import torch
import epg

model = epg.load("run")
reveal_type(model)
reveal_type(model.sample(["cat", {"cat": 0.5, "dog": 0.5}, 3], seed=1))
reveal_type(model.denoise(torch.zeros(1), 1.0, labels="cat"))
reveal_type(model.features(torch.zeros(1), 1.0))
reveal_type(epg.load("run", encoder=True).features(torch.zeros(1), 1.0))
reveal_type(epg.train("digits", data=(torch.zeros(3, 8, 8), [0, 1, 2]), out="run", callbacks=[epg.Callback()]))
"""
SEEN = [
    "epg.generator.Generator",
    *["torch._tensor.Tensor"] * 4,
    "pathlib.Path",
]


def test_mypy_sees_no_any(tmp_path):
    (tmp_path / "user.py").write_text(USER)
    command = [sys.executable, "-m", "mypy", "--no-error-summary", "--disallow-any-expr", str(tmp_path / "user.py")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)  # with the project's cache, and strict
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.findall(r'Revealed type is "([^"]+)"', result.stdout) == SEEN


def test_importing_the_package_imports_no_torch():
    code = "import sys, epg; dir(epg); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT.anchor)


# Training -------------------------------------------------------------------------------------------------------------

QUICK = {
    "model.encoder": {"depth": 1, "width": 24, "heads": 2},
    "model.decoder": {"width": 24, "heads": 2},
    "optimizer.warmup-steps": 1,
    "training.batch_size": 8,
    "training.steps": 4,
    "training.checkpoint_every": 2,
    "training.preview_every": 4,
    "training.log_every": 2,
    "training.trackers": [],
    "sampling.steps": 2,
}
PIXELS = np.random.default_rng(0).integers(0, 256, (12, 8, 8), dtype=np.uint8)
NAMES = ["cat", "dog", "emu"] * 4


class Heard(epg.Callback):
    def __init__(self) -> None:
        self.events: list[tuple[object, ...]] = []

    def on_start(self, folder, step):
        self.events.append(("start", step))

    def on_log(self, step, numbers):
        self.events.append(("log", step, numbers["loss"] > 0))

    def on_preview(self, step, file):
        self.events.append(("preview", step, file.is_file()))

    def on_checkpoint(self, step, folder):
        self.events.append(("checkpoint", step, (folder / "manifest.json").is_file()))

    def on_end(self, step):
        self.events.append(("end", step))
        raise RuntimeError("a fault of the user's")


def weights(run: Path) -> dict[str, torch.Tensor]:
    return epg.load(run, ema=0).denoiser.state_dict()


def test_train_is_what_the_command_line_does(tmp_path):
    """The same weights; the callbacks hear of everything once; what one raises is a warning."""
    heard = Heard()
    with pytest.warns(UserWarning, match="Heard: RuntimeError: a fault of the user's; training goes on"):
        run = epg.train("digits", from_scratch=True, out=tmp_path / "a", settings=QUICK, callbacks=[heard])
    assert run == tmp_path / "a"
    assert [event for event in heard.events if event[0] != "checkpoint"] == [
        ("start", 0),
        ("log", 2, True),
        ("log", 4, True),
        ("preview", 4, True),
        ("end", 4),
    ]
    assert heard.events.count(("checkpoint", 4, True)) == 1
    flat = {name: value for name, value in QUICK.items() if not isinstance(value, dict)}
    flat |= {f"{name}.{key}": v for name, value in QUICK.items() if isinstance(value, dict) for key, v in value.items()}
    flags = [word for name, v in flat.items() for word in (f"--{name}", *map(str, v if isinstance(v, list) else [v]))]
    assert main(["finetune", "digits", "--from-scratch", "--out", str(tmp_path / "b"), *flags]) == 0
    ours, theirs = weights(run), weights(tmp_path / "b")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


class Pairs(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    """As torchvision's: floats from 0 to 1 with the channels first, numbers as labels, and names for them."""

    classes = ("cat", "dog", "emu")

    def __init__(self, images: np.ndarray = PIXELS, noise: float = 0.0) -> None:
        self.images, self.noise = images, noise

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        pixels = torch.from_numpy(self.images[index])[None] / 255
        return (pixels + self.noise * torch.rand(pixels.shape)).clamp(0, 1), index % 3


def hugging_face() -> datasets.Dataset:
    features = datasets.Features(
        {"picture": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog", "emu"])}
    )
    rows = {"picture": [Image.fromarray(pixels) for pixels in PIXELS], "label": [i % 3 for i in range(12)]}
    return datasets.Dataset.from_dict(rows, features=features)


DATA = {
    "array": lambda: (PIXELS, NAMES),
    "tensor": lambda: (torch.from_numpy(PIXELS)[:, None], NAMES),
    "pictures": lambda: [(Image.fromarray(pixels), name) for pixels, name in zip(PIXELS, NAMES, strict=True)],
    "torch": Pairs,
    "datasets": hugging_face,
    "a part of datasets": lambda: hugging_face().select(range(12)),
}
DIGITS = run_config("digits", "diffusion").data


@pytest.mark.parametrize("kind", DATA)
def test_the_same_images_in_every_form(kind):
    images = training_data_in_memory(DATA[kind](), DIGITS)
    assert images.class_names == ("cat", "dog", "emu")
    assert images.labels.tolist() == [0, 1, 2] * 4
    assert all(np.array_equal(images[i][0][0], PIXELS[i]) for i in range(12))
    again, other = DATA[kind](), np.ascontiguousarray(PIXELS[::-1])
    assert training_data_in_memory(again, DIGITS).fingerprint() == images.fingerprint()
    assert training_data_in_memory((other, NAMES), DIGITS).fingerprint() != images.fingerprint()


def test_a_run_is_continued_with_the_same_images_alone(tmp_path):
    settings = {**QUICK, "training.steps": 2}
    where = {"from_scratch": True, "out": tmp_path}
    epg.train("digits", data=(PIXELS, NAMES), settings=settings, **where)
    with pytest.raises(UserError, match=r"(?s)other settings.*data.source: images \w+ -> images"):
        epg.train("digits", data=(PIXELS, NAMES[::-1]), settings=settings, **where)
    assert epg.train("digits", data=Pairs(), settings=settings, override=["data.source"], **where) == tmp_path
    assert epg.load(tmp_path).class_names == ("cat", "dog", "emu")
    assert main(["evaluate", str(tmp_path), "--count", "9"]) == 65


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda: (PIXELS, NAMES[:3]), "12 images and 3 labels"),
        (lambda: PIXELS[:0], "holds no images"),
        (lambda: PIXELS.astype(np.float32), "item 0 is float32 from .* whose range is not known"),
        (lambda: PIXELS[:, :, :, None].repeat(2, 3), r"item 0 has the shape \(8, 8, 2\)"),
        (lambda: ["no-such-file.png"], "no-such-file"),
        (lambda: [3, 4], "item 0 is a int; an array"),
        (lambda: (pixels for pixels in PIXELS), "a generator has no numbered items"),
        (lambda: datasets.DatasetDict(train=hugging_face()), "several splits; give one of them"),
        (lambda: hugging_face().to_iterable_dataset(), "a IterableDataset has no numbered items"),
        (lambda: Pairs(noise=0.5), "image 0 is another one each time it is read"),
    ],
)
def test_what_is_no_data(data, message, tmp_path):
    with pytest.raises((UserError, OSError), match=message):
        epg.train("digits", data=data(), out=tmp_path / "run", settings=QUICK)
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stage": "diffusion"}, "--encoder: which pre-trained encoder"),
        ({"stage": "painting"}, "--stage painting: choose one of pretraining, diffusion"),
        ({"stage": "pretraining", "from_scratch": True}, "are for generators"),
        ({"settings": {"training.stepz": 3, "seed": -1}}, r"(?s)2 wrong settings:.*seed.*training.stepz"),
    ],
)
def test_what_cannot_be_trained(arguments, message):
    with pytest.raises(UserError, match=message):
        epg.train("digits", **arguments)
