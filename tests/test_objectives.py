import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from epg import schedule
from epg.config.settings import RunConfig
from epg.data.loading.loader import Batch
from epg.losses import nt_xent
from epg.networks import EPG, RCM
from epg.networks.build import build_encoder, build_rcm
from epg.objectives.base import Objective, keep_masks
from epg.objectives.consistency import Consistency
from epg.objectives.diffusion import Diffusion
from epg.objectives.pretraining import Pretraining
from epg.randomness import Draws
from tests.helpers import random_batch, randomize, tiny_config, tiny_epg
from tests.precisions import OBJECTIVES, check_precisions

CPU = torch.device("cpu")


def tiny_rcm(config: RunConfig) -> RCM:
    rcm = build_rcm(config.model, config.data)
    for parameter in rcm.parameters():
        torch.nn.init.zeros_(parameter)
    randomize(rcm)
    return rcm


def frozen_encoder(config: RunConfig) -> Any:
    encoder = build_encoder(config.model, config.data)
    for parameter in encoder.parameters():
        torch.nn.init.zeros_(parameter)
    randomize(encoder, seed=5)
    return encoder


def make(stage: str, auxiliary: bool = True, **changes: Any) -> tuple[Objective, RunConfig]:
    config = tiny_config(stage, **changes)
    if stage == "pretraining":
        return Pretraining(tiny_rcm(config), config), config
    network = tiny_epg(config).train()
    if stage == "diffusion":
        return Diffusion(network, config), config
    return Consistency(network, config, frozen_encoder(config) if auxiliary else None), config


TERMS = {
    "pretraining": {"contrastive", "consistency"},
    "diffusion": {"denoising"},
    "consistency": {"consistency", "auxiliary"},
}


# Every stage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_half_precision_changes_little(kind: str) -> None:
    """With the tolerances of a GPU (tests/test_gpu.py)."""
    check_precisions(kind, "cpu")


@pytest.mark.parametrize("stage", TERMS)
def test_forward(stage):
    objective, config = make(stage)
    batch = random_batch(config)
    losses = objective(objective.draw(batch, 3))
    assert {name for name in losses if "/" not in name} == {"loss", *TERMS[stage]}
    assert losses["loss"].shape == ()
    assert losses["loss"].item() == pytest.approx(sum(float(losses[t]) for t in TERMS[stage]), rel=1e-5)
    assert not any(losses[t].requires_grad for t in TERMS[stage])
    losses["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in objective.network.parameters())


@pytest.mark.parametrize("stage", TERMS)
def test_the_same_step_gives_the_same_loss_and_another_one_another(stage):
    (a, config), (b, _) = make(stage), make(stage)
    batch = random_batch(config)
    torch.manual_seed(1)
    first = a(a.draw(batch, 3))["loss"]
    torch.rand(17)  # the global generator is nobody's source
    assert torch.equal(b(b.draw(batch, 3))["loss"], first)
    assert abs(b(b.draw(batch, 4))["loss"].item() - first.item()) > 1e-4


@pytest.mark.parametrize("stage", TERMS)
def test_another_seed_gives_another_loss(stage):
    (a, config), (b, _) = make(stage), make(stage, seed=1)
    batch = random_batch(config)
    assert abs(a(a.draw(batch, 3))["loss"].item() - b(b.draw(batch, 3))["loss"].item()) > 1e-4


@pytest.mark.parametrize("stage", ["diffusion", "consistency"])
def test_micro_batches_do_not_matter(stage):
    """Their mean is the loss of the whole batch (the auxiliary loss, whose negatives are the batch, left out)."""
    objective, config = make(stage, auxiliary=False)
    whole = objective(objective.draw(random_batch(config), 2))["loss"]
    parts = [objective(objective.draw(random_batch(config, 16, first), 2))["loss"] for first in (0, 16)]
    assert abs(parts[0].item() - parts[1].item()) > 1e-3
    assert torch.stack(parts).mean().item() == pytest.approx(whole.item(), rel=1e-5)


def test_micro_batches_may_be_of_any_size():
    objective, config = make("diffusion")
    whole = objective(objective.draw(random_batch(config), 2))["loss"]
    parts = [objective(objective.draw(random_batch(config, 1, first), 2))["loss"] for first in range(32)]
    assert torch.stack(parts).mean().item() == pytest.approx(whole.item(), rel=1e-5)


@pytest.mark.parametrize("stage", ["diffusion", "consistency"])
def test_unconditional(stage):
    objective, config = make(stage, model={"num_classes": 0})
    batch = random_batch(config)
    assert (batch.labels == -1).all()
    losses = objective(objective.draw(batch, 0))
    assert losses["loss"].isfinite()
    losses["loss"].backward()


@pytest.mark.parametrize("stage", ["diffusion", "consistency"])
def test_labels_matter(stage):
    objective, config = make(stage)
    batch = random_batch(config)
    other = Batch(batch.images, (batch.labels + 1) % 3, batch.indices, batch.first)
    losses = [objective(objective.draw(images, 0))["loss"].item() for images in (batch, other)]
    assert abs(losses[0] - losses[1]) > 1e-4


@pytest.mark.parametrize("stage", TERMS)
def test_flip_is_a_setting(stage):
    (flipped, config), (plain, _) = make(stage), make(stage, objective={"flip": False})
    batch = random_batch(config)
    draws = plain.draws(batch, 0)
    images = plain.normalizer.encode(batch.images)
    assert torch.equal(plain.plain_images(batch, draws, False), images)
    mirrored = (plain.plain_images(batch, draws, True) == images.flip(-1)).flatten(1).all(1)
    assert 4 < mirrored.sum() < 28  # binomial(32, 1/2): outside with p < 1e-5
    losses = [[float(o(o.draw(batch, step))["loss"]) for step in range(4)] for o in (flipped, plain)]
    assert max(abs(a - b) for a, b in zip(*losses, strict=True)) > 1e-5  # at one level the noise may hide it


# Pre-training ---------------------------------------------------------------------------------------------------------


def test_momentum_network_starts_as_a_copy_and_follows():
    objective, _ = make("pretraining")
    assert isinstance(objective, Pretraining)
    old = copy.deepcopy(objective.network.state_dict())
    assert all(torch.equal(v, old[k]) for k, v in objective.momentum_network.state_dict().items())
    randomize(objective.network, seed=9)
    objective.after_step(0)
    for name, parameter in objective.momentum_network.named_parameters():
        expected = 0.99 * old[name] + 0.01 * objective.network.get_parameter(name)
        assert torch.allclose(parameter, expected, atol=1e-6), name


def test_momentum_is_a_setting():
    objective, _ = make("pretraining", objective={"momentum": 0.0})
    assert isinstance(objective, Pretraining)
    randomize(objective.network, seed=9)
    objective.after_step(0)
    for target, source in zip(objective.momentum_network.parameters(), objective.network.parameters(), strict=True):
        assert torch.allclose(target, source, atol=1e-6)


def test_momentum_network_gets_no_gradient():
    objective, config = make("pretraining")
    assert isinstance(objective, Pretraining)
    objective(objective.draw(random_batch(config), 0))["loss"].backward()
    assert all(p.grad is None and not p.requires_grad for p in objective.momentum_network.parameters())


def pretraining_inputs(config: RunConfig) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    return {name: torch.randn(8, 1, 8, 8, generator=g) / 2 for name in ("view1", "view2", "images", "noise")}


@pytest.mark.parametrize("index", [0, 10, 19])
def test_constant_temperature_baseline(index):
    """With tau2 = tau1 every level has tau1, whatever the step."""
    objective, config = make("pretraining", objective={"tau2": 0.1})
    assert isinstance(objective, Pretraining)
    values = pretraining_inputs(config)
    numbers = objective.neighbours(21, index, schedule.tau2(0, 100, 0.1, 0.1))
    _, consistency = objective.losses(**values, **{name: torch.tensor(number) for name, number in numbers.items()})
    t_n, t_next = schedule.karras_grid(21)[index : index + 2].tolist()

    def features(t: float) -> Tensor:
        sigma = torch.full((8,), t)
        x = values["images"] + t * values["noise"]
        scaled = schedule.input_scale(sigma).view(-1, 1, 1, 1) * x
        return objective.network.encode(scaled, schedule.time_condition(sigma))

    expected = nt_xent(features(t_n), features(t_next), 0.1)
    assert torch.allclose(consistency, expected, rtol=1e-3, atol=1e-4)  # one call against several


def test_rising_temperature_changes_the_noisy_levels_only():
    objective, config = make("pretraining")
    assert isinstance(objective, Pretraining)
    values = pretraining_inputs(config)

    def term(index: int, tau2: float) -> Tensor:
        numbers = objective.neighbours(1281, index, tau2)
        return objective.losses(**values, **{name: torch.tensor(number) for name, number in numbers.items()})[1]

    assert (term(0, 0.2) - term(0, 0.1)).abs().min() > 1e-4  # random features differ little
    assert (term(1279, 0.2) - term(1279, 0.1)).abs().max() < 2e-6  # float32 of numbers around 2


def test_the_level_is_shared_by_the_whole_global_batch():
    objective, config = make("pretraining")
    draws = [objective.draws(random_batch(config, 16, first), 7) for first in (0, 16)]
    assert draws[0].shared_integer("level", 10**6) == draws[1].shared_integer("level", 10**6)


# Diffusion ------------------------------------------------------------------------------------------------------------


def test_label_dropout_rate():
    """16,000 labels: the standard error of the rate is 0.0024."""
    objective, _ = make("diffusion")
    draws = Draws(0, 0, 0, 16_000, CPU)
    labels = torch.arange(16_000) % 3
    dropped = objective.dropped_labels(labels, draws, 3, 0.1)
    assert (dropped == 3).float().mean().item() == pytest.approx(0.1, abs=0.0096)
    assert torch.equal(dropped[dropped != 3], labels[dropped != 3])
    assert torch.equal(objective.dropped_labels(labels, draws, 3, 0.0), labels)
    assert (objective.dropped_labels(labels, draws, 3, 1.0) == 3).all()


def test_label_dropout_of_everything_makes_labels_irrelevant():
    objective, config = make("diffusion", objective={"label_dropout": 1.0})
    batch = random_batch(config)
    other = Batch(batch.images, (batch.labels + 1) % 3, batch.indices, batch.first)
    assert torch.equal(objective(objective.draw(batch, 0))["loss"], objective(objective.draw(other, 0))["loss"])


def test_diffusion_loss_by_hand():
    objective, _ = make("diffusion", noise={"shift": 2.0})
    assert isinstance(objective, Diffusion)
    g = torch.Generator().manual_seed(0)
    images, noise = torch.randn(4, 1, 8, 8, generator=g) / 2, torch.randn(4, 1, 8, 8, generator=g)
    sigma, labels = torch.tensor([0.01, 0.3, 2.0, 30.0]), torch.tensor([0, 1, 2, 3])
    loss = objective.losses(images, labels, sigma=sigma, noise=noise)
    grid = schedule.karras_grid(1280)
    for i in range(4):
        n = int((grid - sigma[i]).abs().argmin())
        t, weight = 2 * grid[n].item(), 1 / (grid[n] - grid[n + 1]).item()
        denoised = objective.denoiser(images[i : i + 1] + t * noise[i : i + 1], t, labels[i : i + 1])
        expected = weight * (denoised - images[i]).square().mean().item()
        assert loss[i].item() == pytest.approx(expected, rel=1e-3)  # float32, t rounded on another way


def test_diffusion_grid_is_no_part_of_the_state():
    objective, _ = make("diffusion")
    assert all(name.startswith(("network.", "denoiser.network.")) for name in objective.state_dict())


# Consistency ----------------------------------------------------------------------------------------------------------


def outputs_of(objective: Consistency, **arguments: Any) -> list[Tensor]:
    """What the denoiser returned for the online and for the target pass."""
    outputs: list[Tensor] = []
    hook = objective.denoiser.register_forward_hook(lambda module, args, output: outputs.append(output.detach()))
    objective.losses(**arguments)
    hook.remove()
    return outputs


def test_online_and_target_share_the_dropout_mask():
    """Beyond the last stage t == r, so the two passes are the same computation, dropout included."""
    objective, _ = make("consistency", objective={"d": 1})
    assert isinstance(objective, Consistency)
    objective.last_stage = 1000
    g = torch.Generator().manual_seed(0)
    arguments = {
        "images": torch.randn(16, 1, 8, 8, generator=g) / 2,
        "labels": torch.arange(16) % 3,
        "sigma": torch.full((16,), 1.0),
        "noise": torch.randn(16, 1, 8, 8, generator=g),
        "stage": objective.stage(900),
    }
    masks = keep_masks(Draws(0, 0, 0, 16, CPU), 2, (18, 24), 0.5)
    online, target = outputs_of(objective, **arguments, dropout=masks)
    assert torch.equal(online, target)
    assert not torch.allclose(online, outputs_of(objective, **arguments)[0], atol=1e-3)


def test_forward_drops_with_one_mask_per_step():
    objective, config = make("consistency", auxiliary=False, objective={"d": 1})
    assert isinstance(objective, Consistency)
    objective.last_stage = 1000
    outputs: list[Tensor] = []
    objective.denoiser.register_forward_hook(lambda module, args, output: outputs.append(output.detach()))
    losses = objective(objective.draw(random_batch(config), 900))
    assert torch.equal(outputs[0], outputs[1])
    assert losses["loss"].item() == 0  # t == r has weight 0


def test_keep_masks():
    masks = keep_masks(Draws(0, 0, 0, 160, CPU), 2, (10, 20), 0.25)
    assert [m.shape for m in masks] == [(160, 10, 20)] * 2
    assert masks[0].unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert masks[0].mean().item() == pytest.approx(1, abs=0.014)  # 4 standard errors
    assert not torch.equal(masks[0], masks[1])


def test_levels_below_sigma_min_are_clamped_and_weigh_nothing():
    objective, _ = make("consistency", auxiliary=False)
    assert isinstance(objective, Consistency)
    images, noise = torch.randn(2, 1, 8, 8), torch.randn(2, 1, 8, 8)
    loss, _ = objective.losses(images, None, sigma=torch.tensor([1e-6, 1.0]), noise=noise, stage=1)
    assert loss[0] == 0
    assert loss[1] > 0


def test_frozen_encoder_gets_no_gradient_but_passes_it_on():
    objective, config = make("consistency")
    assert isinstance(objective, Consistency)
    before = {k: v.clone() for k, v in objective.frozen_encoder.state_dict().items()}
    images = objective.normalizer.encode(random_batch(config).images)
    denoised = (images + 0.1).requires_grad_()
    auxiliary = objective.auxiliary(denoised, images)
    assert auxiliary is not None
    auxiliary.sum().backward()
    assert denoised.grad is not None
    assert denoised.grad.abs().max() > 0
    assert all(p.grad is None and not p.requires_grad for p in objective.frozen_encoder.parameters())
    assert all(torch.equal(before[k], v) for k, v in objective.frozen_encoder.state_dict().items())


def test_auxiliary_weight():
    (full, config), (half, _) = make("consistency"), make("consistency", objective={"auxiliary_weight": 0.5})
    batch = random_batch(config)
    a, b = full(full.draw(batch, 0)), half(half.draw(batch, 0))
    assert b["auxiliary"].item() == pytest.approx(a["auxiliary"].item() / 2, rel=1e-6)
    assert b["consistency"].item() == pytest.approx(a["consistency"].item(), rel=1e-6)


def test_without_an_encoder_there_is_no_auxiliary_loss():
    objective, config = make("consistency", auxiliary=False)
    losses = objective(objective.draw(random_batch(config), 0))
    assert {name for name in losses if "/" not in name} == {"loss", "consistency"}


def test_consistency_trains_conditionally_without_label_dropping():
    """The null class is never used: its embedding gets no gradient."""
    objective, config = make("consistency", auxiliary=False)
    objective(objective.draw(random_batch(config), 0))["loss"].backward()
    assert isinstance(objective.network, EPG)
    assert objective.network.class_embedding is not None
    gradient = objective.network.class_embedding.weight.grad
    assert gradient is not None
    assert not gradient[3].any()
    assert gradient[:3].abs().amax(1).min() > 0
