"""Parity with numbers computed by the authors' released implementation, on a tiny model in float32."""

import json

import pytest
import torch
from safetensors.torch import load_file

from epg import samplers, schedule
from epg.checkpoint.official import from_release
from epg.checkpoint.state_dict import read_state_dict
from epg.config.settings import RunConfig, parse
from epg.denoiser import Denoiser, bind, clamped
from epg.guidance import IntervalGuidance
from epg.networks import EPG, RCM
from epg.networks.build import build_epg, build_rcm
from epg.objectives.consistency import Consistency
from epg.objectives.diffusion import Diffusion
from epg.objectives.pretraining import Pretraining
from tests.helpers import GOLDEN, golden_recipe, grad_norm, relative

CASES = json.loads((GOLDEN / "cases.json").read_text())
TENSORS = load_file(GOLDEN / "tensors.safetensors")
EPG_FILE = GOLDEN / "official_epg_weights.safetensors"
SHIFT = 32 / 64
LIMIT = 1e-4  # float32 in another order of operations; most agree to 1e-6


def the_epg() -> EPG:
    config = golden_config("diffusion")
    network = build_epg(config.model, config.data)
    network.load_state_dict(from_release(read_state_dict(EPG_FILE), config, EPG_FILE))
    return network


def the_rcm(name: str = "official_rcm_weights") -> RCM:
    config, file = golden_config("pretraining"), GOLDEN / f"{name}.safetensors"
    network = build_rcm(config.model, config.data)
    network.load_state_dict(from_release(read_state_dict(file), config, file))
    return network


def golden_config(stage: str) -> RunConfig:
    return parse(golden_recipe(stage), "golden")


# Forward ------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_generator_forward():
    output = the_epg().eval()(TENSORS["forward.x"], TENSORS["forward.time_condition"], TENSORS["forward.y"])
    assert relative(output, TENSORS["forward.epg_out"]) < LIMIT


@torch.no_grad()
def test_encoder_forward():
    rcm = the_rcm().eval()
    features = rcm.encode(TENSORS["forward.x"], TENSORS["forward.time_condition"])
    assert relative(features, TENSORS["forward.rcm_cls"]) < LIMIT
    assert relative(rcm.project(features), TENSORS["forward.rcm_projection_eval"]) < LIMIT


# Losses -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES["pretrain"], ids=lambda c: f"N{c['num_timesteps']}-n{c['index']}")
def test_pretraining(case):
    network = the_rcm()
    objective = Pretraining(network, golden_config("pretraining"))
    objective.momentum_network.load_state_dict(the_rcm("official_rcm_target_weights").state_dict())
    objective.train()
    numbers = objective.neighbours(case["num_timesteps"], case["index"], case["tau2"])
    contrastive, consistency = objective.losses(
        TENSORS["pretrain.view1"],
        TENSORS["pretrain.view2"],
        TENSORS["pretrain.x0"],
        noise=TENSORS["pretrain.noise"],
        **{name: torch.tensor(number) for name, number in numbers.items()},
    )
    assert relative(contrastive, case["contrastive_per_sample"]) < LIMIT
    assert relative(consistency, case["consistency_per_sample"]) < LIMIT
    norm = grad_norm(network, (contrastive + consistency).mean())
    assert norm == pytest.approx(case["grad_norm_of_mean_sum"], rel=LIMIT)
    grid = schedule.karras_grid(case["num_timesteps"])[case["index"] :][:2]
    assert relative(grid, [case["t_n"], case["t_n_minus_1"]]) < 1e-6  # float32 reference
    assert objective.shift == case["shift"]


def test_diffusion():
    network, case = the_epg(), CASES["diffusion"]
    objective = Diffusion(network, golden_config("diffusion"))
    loss = objective.losses(
        TENSORS["pretrain.x0"],
        TENSORS["diffusion.y"],
        sigma=TENSORS["diffusion.sigma"],
        noise=TENSORS["pretrain.noise"],
    )
    assert relative(loss, case["loss_per_sample"]) < LIMIT
    assert loss.mean().item() == pytest.approx(case["loss"], rel=LIMIT)
    assert grad_norm(network, loss.mean()) == pytest.approx(case["grad_norm"], rel=LIMIT)


def test_diffusion_levels():
    case = CASES["diffusion"]
    grid = schedule.karras_grid(case["N"])
    index = schedule.nearest_level(TENSORS["diffusion.sigma"], grid)
    assert index.tolist() == case["index"]
    assert relative(SHIFT * grid[index], case["t_shifted"]) < 1e-6  # float32 reference


@pytest.mark.parametrize("case", CASES["consistency"]["cases"], ids=lambda c: f"step{c['step']}")
def test_consistency(case):
    network = the_epg()
    objective = Consistency(network, golden_config("consistency"), the_rcm().encoder)
    sigma = torch.tensor(case["t"])
    consistency, auxiliary = objective.losses(
        TENSORS["pretrain.x0"],
        TENSORS["consistency.y"],
        sigma=sigma,
        noise=TENSORS["pretrain.noise"],
        stage=objective.stage(case["step"]),
    )
    assert auxiliary is not None
    assert relative(consistency, case["consistency_per_sample"]) < LIMIT
    assert relative(auxiliary, case["auxiliary_per_sample"]) < LIMIT
    norm = grad_norm(network, (consistency + auxiliary).mean())
    assert norm == pytest.approx(case["grad_norm_of_mean_sum"], rel=LIMIT)
    assert schedule.consistency_stage(case["step"]) == case["stage"]
    assert relative(schedule.consistency_target_level(sigma, case["stage"]), case["r"]) < 1e-6  # float32 reference


def test_consistency_constants():
    reference = CASES["consistency"]
    ours = golden_config("consistency")
    names = ("q", "k", "b", "d", "delta")
    assert {n: getattr(ours.objective, n) for n in names} == {n: reference[n] for n in names}
    assert ours.objective.c == reference["pseudo_huber_c"]
    assert ours.objective.auxiliary_temperature == reference["auxiliary_tau"]
    assert ours.noise.sigma_min == reference["sigma_min"]


# Sampling -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network() -> EPG:
    return the_epg().eval()


BOUNDS = (-torch.ones(3, 1, 1), torch.ones(3, 1, 1))


@pytest.mark.parametrize("to_zero", [False, True])
@pytest.mark.parametrize("scale", [None, 2.5])
@pytest.mark.parametrize("sampler", [samplers.euler, samplers.heun])
@torch.no_grad()
def test_sampling(network, sampler, scale, to_zero):
    denoiser, labels = Denoiser(network, "x"), TENSORS["sample.y"]
    denoise = bind(denoiser, labels)
    if scale is not None:
        denoise = IntervalGuidance(denoiser, labels, scale, (SHIFT * 0.19, SHIFT * 1.61))
    sigmas = schedule.sampling_grid(8, shift=SHIFT, to_zero=to_zero)
    images = sampler(clamped(denoise, BOUNDS), TENSORS["sample.unit_noise"] * 80 * SHIFT, sigmas)
    name = f"sample.{sampler.__name__}.steps8.cfg{scale}.to_zero{to_zero}"
    assert relative(images, TENSORS[name]) < LIMIT


@torch.no_grad()
def test_one_step(network):
    denoiser = Denoiser(network, "edm", sigma_min=0.002 * SHIFT)
    sigmas = schedule.sampling_grid(2, shift=SHIFT)
    denoise = clamped(bind(denoiser, TENSORS["sample.y"]), BOUNDS)
    images = samplers.one_step(denoise, TENSORS["sample.unit_noise"] * 80 * SHIFT, sigmas)
    assert relative(images, TENSORS["sample.onestep"]) < LIMIT


# Schedules ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "levels", "shift"), [("karras_32_at_256", 32, 4.0), ("karras_21", 21, 1.0)])
def test_grids(name, levels, shift):
    reference = CASES["schedule"][name]
    grid = schedule.sampling_grid(levels, shift=shift, to_zero=False)
    assert grid.tolist() == pytest.approx(reference, rel=2e-6)  # float32 reference, seventh powers


@pytest.mark.parametrize(("step", "levels"), CASES["schedule"]["ict_N"])
def test_discretisation(step, levels):
    assert schedule.num_levels(step, 600_000) == levels


@pytest.mark.parametrize(("step", "value"), CASES["schedule"]["tau2"])
def test_tau2(step, value):
    assert schedule.tau2(step, 600_000) == pytest.approx(value, rel=1e-12)


def test_every_reference_tensor_is_used():
    """A reference that nothing reads would be a test that never ran."""
    text = (GOLDEN.parent / "test_golden.py").read_text()
    grid = [(s, c, z) for s in ("euler", "heun") for c in (None, 2.5) for z in (False, True)]
    sampled = {f"sample.{s}.steps8.cfg{c}.to_zero{z}" for s, c, z in grid}
    assert {name for name in TENSORS if f'"{name}"' not in text} == sampled
