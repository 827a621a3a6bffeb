"""Spectral preconditioning, the stem and Muon: the mathematics, and that what is measured travels with the weights."""

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from epg.checkpoint import checkpoint
from epg.checkpoint.loading import load
from epg.cli import main
from epg.config.settings import RunConfig, parse
from epg.config.validation import check
from epg.denoiser import Denoiser
from epg.errors import UserError
from epg.networks import Spectrum
from epg.networks.build import build_epg
from epg.networks.spectrum import cosines, dct, inverse_dct
from epg.objectives.diffusion import Diffusion
from epg.pipeline import EPGPipeline
from epg.runs import train
from epg.training.spectra import PRIOR, gaussians_of
from tests import started
from tests.helpers import random_batch, relative, tiny_config, tiny_epg
from tests.pipeline.common import pixels, python, quiet
from tests.training.test_loop import assert_identical, tensors, tiny

SPECTRAL = {"objective": {"parameterization": "spectral", "mean": 0.0, "std": 1.4}}
CHANGES = {
    **SPECTRAL,
    "model": {"stem": 4},
    "optimizer": {"kind": "muon"},
    "data": {"per_class": 20},
    "training": {"batch_size": 32},
}


def photographs(count: int, size: int = 8, seed: int = 0) -> Tensor:
    """Smooth colour pictures in the network's range, float64, of two kinds in turn."""
    g = torch.Generator().manual_seed(seed)
    colours = torch.tensor([[0.4, 0.1, 0.0], [0.1, 0.3, 0.05], [0.2, 0.0, 0.1]], dtype=torch.float64)
    falling = 1 / (1 + torch.arange(size, dtype=torch.float64)[:, None] + torch.arange(size))
    white = torch.randn(count, 3, size, size, generator=g, dtype=torch.float64)
    images = inverse_dct(torch.einsum("ij,njhw->nihw", colours, white) * falling)
    images[::2] += torch.linspace(-0.2, 0.4, size, dtype=torch.float64)
    return images


def spectrum_of(images: Tensor, labels: Tensor, gaussians: int, *, flip: bool = False) -> Spectrum:
    found = Spectrum(gaussians, images.shape[1], images.shape[2])
    parts = zip(images.split(7), labels.split(7), strict=True)
    for name, value in gaussians_of(iter(parts), found.mean.shape, flip=flip).items():
        getattr(found, name).copy_(value)
    return found


# Mathematics ----------------------------------------------------------------------------------------------------------


def test_dct_is_orthonormal_and_separates_frequencies():
    matrix = cosines(16, torch.zeros(1, dtype=torch.float64))
    assert torch.allclose(matrix @ matrix.T, torch.eye(16, dtype=torch.float64), atol=1e-12)
    x = photographs(3, 16)
    assert torch.allclose(inverse_dct(dct(x)), x, atol=1e-12)
    constant = dct(torch.ones(1, 16, 16))[0]
    assert float(constant[0, 0]) == pytest.approx(16)
    assert constant.flatten()[1:].abs().max() < 1e-5


def test_the_dense_formula_comes_out():
    """m + C (C + s^2)^-1 (x - m), with C the covariance of pixels that the spectrum stands for."""
    images = photographs(200)
    spectrum = spectrum_of(images, torch.zeros(200, dtype=torch.int64), 1).double()
    units = torch.eye(3 * 64, dtype=torch.float64).view(-1, 3, 8, 8)
    directions = spectrum.directions[0]  # (colour, direction, H, W)
    along = torch.einsum("cdhw,nchw->ndhw", directions, dct(units)) * spectrum.variance[0]
    covariance = inverse_dct(torch.einsum("cdhw,ndhw->nchw", directions, along)).flatten(1)
    mean = inverse_dct(spectrum.mean).flatten()
    x, sigma = images[:4] + torch.randn(4, 3, 8, 8, dtype=torch.float64), torch.tensor([0.05, 0.5, 2.0, 40.0]).double()
    for i, s in enumerate(sigma):
        posterior = covariance @ torch.linalg.inv(covariance + s**2 * torch.eye(192, dtype=torch.float64))
        expected = mean + posterior @ (x[i].flatten() - mean)
        assert torch.allclose(spectrum(x, sigma)[i].flatten(), expected, atol=1e-5)
        unknown = (s**2 * posterior.diagonal()).mean().sqrt()
        assert torch.allclose(spectrum.spread(sigma)[i], unknown, rtol=1e-5)


def test_measured_statistics_are_those_of_the_images_and_their_mirror_images():
    images, labels = photographs(60), torch.arange(60) % 2
    found = spectrum_of(images, labels, 3, flip=True)
    both, twice = torch.cat([images, images.flip(-1)]), torch.cat([labels, labels])
    coefficients = dct(both)
    assert torch.allclose(found.mean[-1].double(), coefficients.mean(0), atol=1e-6)
    centred = coefficients - coefficients.mean(0)
    covariance = torch.einsum("nihw,njhw->ijhw", centred, centred) / 120
    rebuilt = torch.einsum(
        "idhw,dhw,jdhw->ijhw", *(t[-1] for t in (found.directions, found.variance)), found.directions[-1]
    )
    assert torch.allclose(rebuilt.double(), covariance, atol=3e-6)  # the smallest variance is 1e-6
    own = 30 / (30 + PRIOR)
    of_class = own * coefficients[twice == 0].mean(0) + (1 - own) * coefficients.mean(0)
    assert torch.allclose(found.mean[0].double(), of_class, atol=1e-6)
    assert found.mean[..., 1::2].abs().max() < 1e-7


def test_a_class_without_images_takes_the_statistics_of_all():
    found = spectrum_of(photographs(20), torch.arange(20) % 2, 4)
    for value in (found.mean, found.variance):
        assert torch.equal(value[2], value[3])
        assert not torch.equal(value[0], value[3])


def test_before_it_is_measured_it_is_edms_preconditioning():
    config = tiny_config(**SPECTRAL)
    x, t, labels = torch.randn(4, 1, 8, 8), torch.tensor([0.01, 0.5, 3.0, 80.0]), torch.tensor([0, 1, 2, 3])
    network = tiny_epg(config)
    expected = Denoiser(network, "edm", sigma_min=0.0)(x, t, labels)
    assert torch.allclose(Denoiser(network, "spectral")(x, t, labels), expected, atol=1e-5)


def test_an_untrained_network_has_a_loss_of_one():
    """The loss is the squared error in units of what the linear denoiser leaves unknown."""
    config = tiny_config(**SPECTRAL, data={"channels": 3}, model={"num_classes": 0})
    images = photographs(512)
    objective = Diffusion(tiny_epg(config), config)
    torch.nn.init.zeros_(objective.network.decoder.out.weight)
    torch.nn.init.zeros_(objective.network.decoder.out.bias)
    objective.network.spectrum = spectrum_of(images, torch.zeros(512, dtype=torch.int64), 1)
    for level in (0.05, 0.5, 5.0):
        noise = torch.randn(512, 3, 8, 8, generator=torch.Generator().manual_seed(1))
        loss = objective.losses(images.float(), None, sigma=torch.full((512,), level), noise=noise).mean()
        assert float(loss.detach()) == pytest.approx(1, abs=0.03)


def test_autocast_does_not_touch_the_linear_part():
    spectrum = spectrum_of(photographs(50), torch.zeros(50, dtype=torch.int64), 1)
    x, sigma = torch.randn(4, 3, 8, 8), torch.full((4,), 0.01)
    with torch.autocast("cpu", torch.bfloat16):
        inside = spectrum(x, sigma)
    assert torch.equal(inside, spectrum(x, sigma))
    assert inside.dtype == torch.float32


def test_stem_and_head_start_at_zero_and_reach_every_pixel():
    config = tiny_config(model={"stem": 4})
    network = build_epg(config.model, config.data)
    x, c, labels = torch.randn(2, 1, 8, 8), torch.zeros(2), torch.tensor([0, 1])
    assert not network(x, c, labels).any()
    moved = tiny_epg(config)
    assert moved(x, c, labels).shape == x.shape
    assert moved.encoder.patch_embedding.weight.shape[1] == 4
    batch = random_batch(config)
    moved.train()
    objective = Diffusion(moved, config)
    objective(objective.draw(batch, 0))["loss"].backward()
    assert all(p.grad is not None and p.grad.any() for n, p in moved.named_parameters() if "stem" in n or "head" in n)


def test_what_cannot_be_is_refused_by_name():
    with pytest.raises(UserError, match=r"--objective\.spectrum class.*choose global"):
        check(tiny_config(data={"image_size": 256, "channels": 3}, model={"num_classes": 1000}, **SPECTRAL))
    with pytest.raises(UserError, match=r"--optimizer\.kind muon.*fsdp"):
        check(tiny_config(optimizer={"kind": "muon"}, training={"parallel": "fsdp"}))


# Runs -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return tiny("diffusion", **CHANGES)


@pytest.fixture(scope="module")
def run(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spectral")
    train(config, folder)
    return folder


def test_a_resumed_run_equals_an_uninterrupted_one(run, config, tmp_path):
    part = Path(shutil.copytree(run, tmp_path / "part"))
    for path in checkpoint.listing(part / "checkpoints")[-1:]:
        shutil.rmtree(path)
    train(config, part)
    assert_identical(tensors(run), tensors(part))
    optimizer = checkpoint.find(run).tensors("optimizer")
    assert "network.decoder.blocks.0.attention.qkv.weight.momentum_buffer" in optimizer
    assert "network.decoder.blocks.0.modulation.weight.exp_avg" in optimizer


def _train(config: dict[str, object], folder: str) -> None:
    train(parse(config, "two"), Path(folder))


def test_two_processes_equal_one(run, config, tmp_path):
    started.call(_train, config.model_dump(mode="json"), tmp_path / "two", processes=2)
    one, two = tensors(run), tensors(tmp_path / "two")
    assert one.keys() == two.keys()
    for name, value in one.items():
        if "spectrum" in name:
            assert torch.equal(value, two[name]), name
        elif name.startswith("ema") and value.is_floating_point():
            assert relative(two[name], value) < 0.02, name  # Muon multiplies in bf16


def test_export_pipeline_and_diffusers_alone_draw_the_same(run, tmp_path):
    model = load(run)
    spectrum = model.denoiser.network.spectrum
    assert spectrum is not None
    assert spectrum.gaussians == 11
    assert not torch.equal(spectrum.mean[0], spectrum.mean[1])
    labels = torch.arange(10)
    expected = model.sample(labels, seed=3)
    assert main(["convert", str(run), "--out", str(tmp_path / "pipe")]) == 0
    assert main(["convert", str(run), "--to", "weights", "--out", str(tmp_path / "weights")]) == 0
    assert torch.equal(load(tmp_path / "weights").sample(labels, seed=3), expected)
    assert torch.equal(load(tmp_path / "pipe").sample(labels, seed=3), expected)
    pipe = quiet(EPGPipeline.from_pretrained(tmp_path / "pipe"))
    assert torch.equal(pixels(pipe(labels, generator=3).images), expected)
    code = f"""
import torch
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained({str(tmp_path / "pipe")!r}, trust_remote_code=True)
torch.save(pipe(list(range(10)), generator=3, output_type="pt").images, {str(tmp_path / "images.pt")!r})
"""
    python(code, tmp_path / "home")
    drawn = (torch.load(tmp_path / "images.pt") * 255).round().to(torch.uint8)
    assert int((drawn.int() - expected.int()).abs().max()) <= 1


def test_guidance_uses_both_linear_parts(run, tmp_path, capsys):
    drawn = ["sample", str(run), "--count", "4", "--device", "cpu"]
    assert main([*drawn, "--out", str(tmp_path / "plain")]) == 0
    assert main([*drawn, "--guidance", "3", "--out", str(tmp_path / "guided")]) == 0
    assert main(["denoising", str(run), "--count", "16", "--levels", "3", "--out", str(tmp_path / "d")]) == 0


def test_the_release_has_no_name_for_it(run, tmp_path, capsys):
    assert main(["convert", str(run), "--to", "release", "--out", str(tmp_path / "r.safetensors")]) != 0
    assert "the authors' network has no" in capsys.readouterr().err
