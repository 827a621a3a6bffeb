"""Tiny generators whose images are not grey, and runs that hold them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from epg.checkpoint import export, saving
from epg.checkpoint.loading import generator_of
from epg.config.settings import RunConfig
from epg.generator import Generator
from epg.networks import EPG
from epg.objectives.diffusion import Diffusion
from epg.training.ema import EMA
from tests.helpers import run_state, tiny_config, tiny_epg

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


def state_of(config: RunConfig, names: Sequence[str] = NAMES) -> dict[str, Any]:
    return run_state(config, list(names) if config.model.num_classes else [])


def save_run(folder: Path, config: RunConfig, seed: int = 0, names: Sequence[str] = NAMES) -> Path:
    """What a run of a tiny diffusion model leaves behind; the EMA of decay 0.5 is of another network."""
    objective = Diffusion(lively_epg(config, seed), config)
    tensors = {"model": objective.state_dict()}
    for decay in config.training.ema:
        source = objective.network if decay == 0.9 else lively_epg(config, seed + 1)
        tensors[f"ema-{decay}"] = EMA(source, [decay]).state_dict(f"ema-{decay}")
    saving.save(folder / "checkpoints", 10, tensors, state_of(config, names), keep=2)
    return folder


def save_export(folder: Path, config: RunConfig, seed: int = 0) -> Path:
    """The same network as an export, which needs no training state."""
    weights = EMA(lively_epg(config, seed), [0.9]).state_dict("ema-0.9")
    export.write(folder, 10, {"ema-0.9": weights}, state_of(config))
    return folder
