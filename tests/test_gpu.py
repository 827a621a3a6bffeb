"""On an NVIDIA GPU: what is computed there is what is computed on the CPU."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from epg.checkpoint import checkpoint
from epg.distributed import all_gather, all_reduce_sum
from epg.networks.layers import transformer_blocks
from epg.runs import prepare_run, train
from epg.training.parallel import SYNC
from tests import started
from tests.generators import tiny_generator
from tests.helpers import random_batch, relative
from tests.precisions import OBJECTIVES, check_precisions, objective_of, outcome, wide
from tests.training.test_loop import tensors, tiny

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_loss_and_gradient_equal_the_cpus(kind: str) -> None:
    check_precisions(kind, "cuda")


@pytest.mark.parametrize("kind", ["diffusion", "spectral"])
def test_compiled_blocks_change_nothing(kind: str) -> None:
    plain = outcome(objective_of(kind), "cuda")
    objective = objective_of(kind)
    for block in transformer_blocks(objective):
        block.compile()
    loss, gradient = outcome(objective, "cuda")
    assert relative(loss, plain[0]) < 1e-4
    assert relative(gradient, plain[1]) < 1e-3


def test_the_linear_part_keeps_float32_under_tf32_and_autocast() -> None:
    spectrum = objective_of("spectral").network.spectrum
    x, sigma, labels = torch.randn(8, 1, 8, 8) * 80, torch.full((8,), 80.0), torch.arange(8) % 3
    expected = spectrum(x, sigma, labels)
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        with torch.autocast("cuda", torch.bfloat16):
            found = spectrum.to("cuda")(x.cuda(), sigma.cuda(), labels.cuda())
        assert torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    assert relative(found.cpu(), expected) < 1e-5


def test_ddp_over_nccl_with_one_process() -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": started.free_port()}
    expected = outcome(objective_of("diffusion"), "cuda")
    dist.init_process_group("nccl", rank=0, world_size=1)
    try:
        x = torch.arange(6.0, device="cuda")
        assert torch.equal(all_gather(x), x)
        assert torch.equal(all_reduce_sum(x), x)
        objective = objective_of("diffusion").to("cuda")
        options: dict[str, Any] = {SYNC: False, "gradient_as_bucket_view": True}
        wrapped = DistributedDataParallel(objective, **options)
        wrapped(objective.draw(random_batch(wide("diffusion")).to("cuda"), 3))["loss"].backward()
        gradient = torch.cat([p.grad.flatten() for p in objective.parameters() if p.grad is not None]).cpu()
    finally:
        dist.destroy_process_group()
    assert relative(gradient, expected[1]) < 1e-5


@pytest.mark.parametrize("sampler", ["heun", "euler_ancestral"])
def test_samples_equal_the_cpus(sampler: str) -> None:
    labels = torch.arange(6) % 3
    pictures = []
    for device in ("cpu", "cuda"):
        model = tiny_generator(sampling={"sampler": sampler, "steps": 8, "guidance": 2.0})
        model.to(device)
        pictures.append(model.sample(labels, seed=5))
    apart = (pictures[0].int() - pictures[1].int()).abs()
    assert int(apart.max()) <= 2
    assert float((apart > 0).float().mean()) < 0.02


@pytest.mark.parametrize("stage", ["pretraining", "diffusion", "consistency"])
def test_a_step_that_goes_well_waits_for_nothing(stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two log lines; the flags of the step before are waited for alone, by an event."""
    training = {"device": "cuda", "precision": "bf16", "steps": 12, "log_every": 12, "trackers": []}
    encoder = None
    if stage == "consistency":
        encoder = tmp_path / "encoder"
        train(tiny("pretraining", training={"steps": 2}), encoder)
    trainer = prepare_run(tiny(stage, training=training), tmp_path / "run", encoder=encoder).trainer  # type: ignore[arg-type]
    step = trainer.train_step

    def strict(batches: object) -> object:
        torch.cuda.set_sync_debug_mode("error" if trainer.step in range(4, 11) else "default")
        return step(batches)  # type: ignore[arg-type]

    monkeypatch.setattr(trainer, "train_step", strict)
    try:
        trainer.run()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    changes = {
        "objective": {"parameterization": "spectral"},
        "optimizer": {"kind": "muon"},
        "model": {"stem": 4},
        "training": {"device": "cuda", "precision": "bf16", "trackers": []},
    }
    config = tiny("diffusion", **changes)
    train(config, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    shutil.rmtree(checkpoint.listing(tmp_path / "part" / "checkpoints")[-1])
    train(config, tmp_path / "part")
    whole, part = tensors(tmp_path / "whole"), tensors(tmp_path / "part")
    assert whole.keys() == part.keys()
    weights = [name for name in whole if name.startswith("ema")]
    assert all(torch.allclose(whole[name].float(), part[name].float(), atol=1e-2) for name in weights)
