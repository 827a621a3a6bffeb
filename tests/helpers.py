"""Tiny configurations and networks: real components, small enough for a second."""

import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from epg.config.objectives import KINDS
from epg.config.recipe import merge
from epg.config.settings import RunConfig, parse
from epg.data.loading.loader import Batch
from epg.denoiser import Denoiser
from epg.networks import EPG
from epg.networks.build import build_epg
from epg.objectives.base import Drawn, Losses, Objective

GOLDEN = Path(__file__).parent / "golden"
BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def tiny_config(stage: str = "diffusion", **changes: Any) -> RunConfig:
    return parse(tiny_content(stage, **changes), "tiny")


def tiny_content(stage: str = "diffusion", **changes: Any) -> dict[str, Any]:
    """8x8 grey images, three classes, two blocks of width 16 and 24. `changes` are laid over it section by section."""
    base = {
        "recipe": "tiny",
        "data": {"source": "digits", "image_size": 8, "channels": 1, "normalization": "symmetric", "workers": 0},
        "model": {
            "patch_size": 2,
            "num_classes": 3,
            "encoder": {"depth": 2, "width": 16, "heads": 2},
            "decoder": {"width": 24, "heads": 2},
            "projector_hidden": 32,
            "projector_out": 16,
        },
        "noise": {"shift": 1.0},
        "objective": {"kind": stage},
        "optimizer": {"lr": 1e-3, "warmup_steps": 0},
        "training": {"batch_size": 32, "steps": 100, "ema": [] if stage == "pretraining" else [0.9]},
        "sampling": {"sampler": KINDS[stage].sampler if stage in KINDS else "heun", "steps": 4},
    }
    return merge(base, changes)


def golden_recipe(stage: str) -> dict[str, Any]:
    """The configuration of the tiny networks in `golden/`; the reference clamps predictions to [-1, 1]."""
    return {
        "recipe": "golden",
        "data": {"image_size": 32, "normalization": "symmetric"},
        "model": {
            "patch_size": 4,
            "num_classes": 10,
            "encoder": {"depth": 3, "width": 48, "heads": 3},
            "decoder": {"width": 80, "heads": 5},
            "projector_hidden": 64,
            "projector_out": 32,
        },
        "objective": {"kind": stage, **({"d": 100_000} if stage == "consistency" else {})},
        "optimizer": {"lr": 1e-4},
        "training": {"batch_size": 6, "steps": 600_000},
    }


def run_state(config: RunConfig, class_names: Sequence[str] = (), data: str = "0" * 64) -> dict[str, Any]:
    """What a checkpoint records besides tensors."""
    return {
        "config": config.model_dump(mode="json"),
        "class_names": list(class_names),
        "class_counts": [],
        "data": data,
        "processes": 1,
        "skipped": 0,
        "skipped_in_row": 0,
        "loss_scale": 65536.0,
        "loss_scale_good_steps": 0,
        "history": [],
    }


def randomize(module: nn.Module, seed: int = 0, std: float = 0.2) -> None:
    """Adds noise to every parameter: a fresh generator outputs exactly 0, which would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += std * torch.randn(parameter.shape, generator=generator)


def tiny_epg(config: RunConfig | None = None, seed: int = 0) -> EPG:
    config = config or tiny_config()
    network = build_epg(config.model, config.data, config.gaussians, config.internal)
    for parameter in network.parameters():
        nn.init.zeros_(parameter)  # so that the weights depend on `seed` alone
    randomize(network, seed)
    return network.eval()


def tiny_denoiser(parameterization: str = "x", seed: int = 0) -> Denoiser:
    return Denoiser(tiny_epg(seed=seed), parameterization)  # type: ignore[arg-type]


def random_batch(config: RunConfig, count: int | None = None, first: int = 0, seed: int = 0) -> Batch:
    """Samples `first` to `first + count - 1` of a global batch of noise pictures."""
    total = config.training.batch_size
    count = total if count is None else count
    generator = torch.Generator().manual_seed(seed)
    size = config.data.image_size
    images = torch.randint(256, (total, config.data.channels, size, size), generator=generator, dtype=torch.uint8)
    classes = config.model.num_classes or 0
    labels = torch.randint(classes, (total,), generator=generator) if classes else torch.full((total,), -1)
    part = slice(first, first + count)
    return Batch(images[part], labels[part], torch.arange(total)[part], first)


def change_losses(objective: Objective, change: Callable[[int, Losses], Losses]) -> None:
    """The objective's losses become `change(step, losses)`, of the step that was drawn last."""
    draw, forward, last = objective.draw, objective.forward, [0]

    def drawn(batch: Batch, step: int) -> Drawn:
        last[0] = step
        return draw(batch, step)

    objective.draw = drawn  # type: ignore[method-assign]
    objective.forward = lambda values: change(last[0], forward(values))  # type: ignore[method-assign]


def relative(value: Tensor | list[float] | float, reference: Tensor | list[float] | float) -> float:
    """||value - reference|| / ||reference||."""
    a, b = (torch.as_tensor(v, dtype=torch.float64).detach() for v in (value, reference))
    assert a.shape == b.shape, (a.shape, b.shape)
    return float((a - b).norm() / b.norm())


def grad_norm(module: nn.Module, loss: Tensor) -> float:
    """Norm of the gradient of `loss` over all parameters."""
    module.zero_grad()
    loss.backward()
    return float(sum(p.grad.double().square().sum() for p in module.parameters() if p.grad is not None) ** 0.5)


class EvaluationCounter:
    """Counts the images that pass through `denoiser`; divided by the images sampled, that is the NFE."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser, self.images = denoiser, 0
        self._hook = denoiser.register_forward_pre_hook(self._count)

    def _count(self, module: torch.nn.Module, args: tuple[Tensor, ...]) -> None:
        self.images += len(args[0])

    def __enter__(self) -> "EvaluationCounter":
        return self

    def __exit__(self, *exc: object) -> None:
        self._hook.remove()


def script(name: str) -> ModuleType:
    """A program of `benchmarks/` as a module, found by its classes under its own name."""
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
