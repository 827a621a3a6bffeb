"""Losses and gradients of small objectives on any device, in the precisions of training, against float32 on the CPU."""

import torch
from torch import Tensor

from epg.data.configured import open_training_data
from epg.networks.build import build_rcm
from epg.objectives.base import Objective
from epg.objectives.consistency import Consistency
from epg.objectives.diffusion import Diffusion
from epg.objectives.pretraining import Pretraining
from epg.training.spectra import measure
from tests.helpers import random_batch, randomize, relative, tiny_config, tiny_epg

N = 32
OBJECTIVES = ("pretraining", "diffusion", "flow", "spectral", "consistency")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# Distances from float32 on the CPU, of loss and gradient. Half precision: about ten times what autocast on a CPU does.
SMOOTH = {"fp32": (1e-4, 5e-4), "bf16": (1e-2, 5e-2), "fp16": (1e-3, 1e-2)}
# The projector's ReLUs switch where rounding crosses zero, and the gradient jumps: on a CPU by 0.25 to 0.39 (bf16) and
# 0.06 to 0.27 (fp16) for three batches, whatever the loss scale (0.02 in fp16 with GELU). A wrong one is 1 away.
SWITCHING = {"fp32": (1e-4, 5e-4), "bf16": (1e-2, 0.6), "fp16": (1e-2, 0.5)}


def wide(stage: str, **changes: object):  # type: ignore[no-untyped-def]
    """Large enough that half precision is not mostly noise, and that fused attention takes its heads."""
    towers = {"encoder": {"depth": 2, "width": 64, "heads": 2}, "decoder": {"width": 64, "heads": 2}}
    model = {"num_classes": 10, **towers}
    return tiny_config(stage, model=model, training={"batch_size": N}, **changes)


def objective_of(kind: str) -> Objective:
    """An objective with weights that are the same wherever it is made."""
    if kind == "pretraining":
        config = wide("pretraining")
        rcm = build_rcm(config.model, config.data)
        for parameter in rcm.parameters():
            torch.nn.init.zeros_(parameter)
        randomize(rcm, std=0.1)
        return Pretraining(rcm, config)
    if kind == "consistency":
        config = wide("consistency", objective={"dropout": 0.0})
        return Consistency(tiny_epg(config), config, tiny_epg(config, seed=1).encoder)
    choices = {
        "diffusion": {},
        "flow": {"density": "uniform_t", "weighting": "v", "rounding": False, "internal_weight": 0.5},
        "spectral": {"parameterization": "spectral", "mean": 0.0, "std": 1.4},
    }
    config = wide("diffusion", objective=choices[kind])
    objective = Diffusion(tiny_epg(config), config)
    if objective.network.spectrum is not None:
        measure(objective.network.spectrum, open_training_data(config.data), config, objective.normalizer)
    return objective


def outcome(objective: Objective, device: str, precision: str = "fp32") -> tuple[Tensor, Tensor]:
    """Loss and gradient of one batch, on the CPU."""
    objective = objective.to(device).train()
    with torch.autocast(device, DTYPES[precision], enabled=precision != "fp32"):
        loss = objective(objective.draw(random_batch(wide("diffusion")).to(device), 3))["loss"]
    scale = 64.0 / float(loss.detach()) if precision == "fp16" else 1.0
    (loss * scale).backward()
    gradients = [p.grad.flatten() / scale for p in objective.parameters() if p.grad is not None]
    return loss.detach().cpu(), torch.cat(gradients).cpu()


def check_precisions(kind: str, device: str) -> None:
    """Loss and gradient on a device are those of float32 on the CPU, as near as each precision allows."""
    expected = outcome(objective_of(kind), "cpu")
    for precision, (of_loss, of_gradient) in (SWITCHING if kind == "pretraining" else SMOOTH).items():
        loss, gradient = outcome(objective_of(kind), device, precision)
        assert relative(loss, expected[0]) < of_loss, precision
        assert relative(gradient, expected[1]) < of_gradient, precision
