"""Internal guidance: a head on the encoder, trained beside the decoder, that guides without a further evaluation."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from epg.checkpoint.loading import load
from epg.cli import main
from epg.config.recipe import run_config
from epg.config.settings import parse
from epg.cost.network import generator_cost, parts, total
from epg.guidance import InternalGuidance
from epg.objectives.diffusion import Diffusion
from epg.pipeline import EPGPipeline
from epg.runs import prepare_run, train
from epg.training.tracking import read_log
from tests import started
from tests.generators import save_run, tiny_generator
from tests.helpers import random_batch, tiny_config, tiny_epg
from tests.pipeline.common import python, quiet
from tests.training.test_loop import CrashError, assert_identical, crash_after, tensors, tiny

WITH_HEAD = {"objective": {"internal_weight": 0.5}}
LABELS = torch.tensor([0, 2])


def test_the_loss_is_that_of_both_predictions() -> None:
    """L = d(x^, x) + 0.5 d(x^_enc, x), with the same levels, noise and weights."""
    config = tiny_config("diffusion", **WITH_HEAD)
    objective = Diffusion(tiny_epg(config), config)
    drawn = objective.draw(random_batch(config), 0)
    losses = objective(drawn)
    inputs = (drawn["images"], drawn["labels"])
    d, e = objective.losses(*inputs, sigma=objective.levels(drawn["unit"]), noise=drawn["noise"]).detach()
    assert float(losses["loss"]) == pytest.approx(float(d.mean() + 0.5 * e.mean()), rel=1e-5)
    assert float(losses["internal"]) == pytest.approx(float(0.5 * e.mean()), rel=1e-5)
    losses["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in objective.network.parameters())
    with torch.no_grad():
        objective.network.internal_head.weight.zero_()
        objective.network.internal_head.bias.zero_()
    changed = objective.losses(*inputs, sigma=objective.levels(drawn["unit"]), noise=drawn["noise"])
    assert torch.equal(changed[0], d)
    assert not torch.equal(changed[1], e)


@pytest.mark.parametrize("parameterization", ["x", "edm", "spectral"])
def test_formula_inside_the_interval(parameterization: str) -> None:
    """The head stands in the decoder's place inside the denoiser, whatever that makes of it."""
    objective = {"internal_weight": 0.5, "parameterization": parameterization}
    denoiser = tiny_generator(objective=objective).denoiser.requires_grad_(False)
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    d, e = denoiser(x, 1.0, LABELS, internal=True)
    assert torch.equal(d, denoiser(x, 1.0, LABELS))
    assert (d - e).abs().max() > 0.1
    guided = InternalGuidance(denoiser, LABELS, 1.4, (0.19, 1.61))
    assert torch.allclose(guided(x, 1.0), e + 1.4 * (d - e))
    assert torch.equal(guided(x, 0.19), denoiser(x, 0.19, LABELS))
    if parameterization == "x":
        network, scaled = denoiser.network, x / 1.25**0.5
        tokens, _ = network.encoder(scaled, torch.zeros(2), network.class_embedding(LABELS))
        expected = network.decoder.unpatchify(network.internal_head(tokens[:, 2:]))
        assert torch.allclose(e, expected, rtol=1e-4, atol=1e-5)


def test_costs() -> None:
    config = run_config("imagenet256-xl", "diffusion")
    objective = config.objective.model_copy(update={"internal_weight": 0.5})
    guided = config.model_copy(update={"objective": objective})
    plain, more = total(parts(config).values()), total(parts(guided).values())
    assert more.parameters - plain.parameters == (768 + 1) * 16 * 16 * 3
    assert (more.parameters / plain.parameters - 1) == pytest.approx(0.001, abs=2e-4)
    assert more.macs - plain.macs == 256 * 768 * 768
    config = tiny_config("diffusion", **WITH_HEAD)
    network = tiny_epg(config)
    assert generator_cost(network.shape).parameters == sum(p.numel() for p in network.parameters())


def test_it_takes_no_further_evaluations_and_acts_everywhere_unless_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(save_run(tmp_path / "run", tiny_config("diffusion", **WITH_HEAD)))

    def sample(name: str, *flags: str) -> dict[str, object]:
        assert main(["sample", run, "--count", "2", "--out", str(tmp_path / name), *flags]) == 0
        return json.loads((tmp_path / name / "samples.json").read_text())

    plain, guided = sample("plain"), sample("guided", "--guide", "internal", "--guidance", "1.4")
    within = sample("within", "--guide", "internal", "--guidance", "1.4", "--interval", "0.19", "80")
    assert plain["nfe"] == guided["nfe"] == 7
    assert sample("unconditional", "--guidance", "1.4")["nfe"] == 9  # two of them inside the interval of that one
    assert guided["sampling"]["interval"] == [0.0, 1e6]
    assert within["sampling"]["interval"] == [0.19, 80.0]
    pictures = {name: (tmp_path / name / "000000.png").read_bytes() for name in ("plain", "guided", "within")}
    assert len(set(pictures.values())) == 3
    assert main(["sample", run, "--guide", "internal", "--out", str(tmp_path / "none")]) == 2
    assert "--guide internal: does nothing without --guidance" in capsys.readouterr().err
    headless = str(save_run(tmp_path / "headless", tiny_config()))
    assert main(["sample", headless, "--guide", "internal", "--guidance", "2", "--out", str(tmp_path / "none")]) == 2
    assert "trained without --objective.internal-weight" in capsys.readouterr().err


def test_a_saved_pipeline_has_it_with_its_own_code(tmp_path: Path) -> None:
    sampling = {"guide": "internal", "guidance": 1.4, "interval": [0.1, 80.0]}
    model = tiny_generator(**WITH_HEAD, sampling=sampling)
    pipe = quiet(EPGPipeline.from_generator(model))
    pipe.save_pretrained(tmp_path / "pipe")
    expected = model.sample([0, 1], seed=3)
    assert torch.equal(load(tmp_path / "pipe").sample([0, 1], seed=3), expected)
    out = tmp_path / "out.pt"
    python(
        f"import torch; from diffusers import DiffusionPipeline as P\n"
        f"p = P.from_pretrained({str(tmp_path / 'pipe')!r}, trust_remote_code=True)\n"
        f"told = dict(generator=3, output_type='latent')\n"
        f"torch.save([p([0, 1], **told).images, p([0, 1], guide='unconditional', **told).images], {str(out)!r})",
        tmp_path / "home",
    )
    own, other = torch.load(out, weights_only=True)
    assert torch.equal(model.normalizer.decode(own), expected)
    assert not torch.equal(own, other)


def _train(config: dict[str, Any], folder: str) -> None:
    train(parse(config, "test"), Path(folder))


def test_resumed_and_in_two_processes(tmp_path: Path) -> None:
    """With levels as drawn, the velocity's weight and uniform times: the same to the bit, and to 1e-9 in float64."""
    choice = {"density": "uniform_t", "weighting": "v", "rounding": False, "internal_weight": 0.5}
    config = tiny("diffusion", objective=choice, training={"precision": "fp64"})
    train(config, tmp_path / "one")
    assert "internal" in read_log(tmp_path / "one")[-1]
    run = prepare_run(config, tmp_path / "crashed")
    crash_after(run.trainer, 4)
    with pytest.raises(CrashError):
        run.trainer.run()
    train(config, tmp_path / "crashed")
    one = tensors(tmp_path / "one")
    assert one["model/network.internal_head.weight"].any()
    assert_identical(one, tensors(tmp_path / "crashed"))
    started.call(_train, config.model_dump(mode="json"), tmp_path / "two", processes=2)
    logs = zip(read_log(tmp_path / "one"), read_log(tmp_path / "two"), strict=True)
    assert all(two[name] == pytest.approx(one[name], rel=1e-9) for one, two in logs for name in ("loss", "internal"))


def test_a_head_is_new_or_left_behind_where_a_run_begins_with_a_generator(tmp_path: Path) -> None:
    train(tiny("diffusion", training={"steps": 2}), tmp_path / "plain")
    begun = prepare_run(tiny("diffusion", **WITH_HEAD), tmp_path / "with", base=tmp_path / "plain")
    network = begun.trainer.objective.network
    assert not network.internal_head.weight.any()
    assert network.decoder.out.weight.any()
    train(tiny("diffusion", **WITH_HEAD, training={"steps": 2}), tmp_path / "head")
    headless = prepare_run(tiny("diffusion"), tmp_path / "without", base=tmp_path / "head")
    assert headless.trainer.objective.network.internal_head is None
    told = json.loads((tmp_path / "with" / "handover.json").read_text())["generator"]
    assert told["new"] == ["internal_head.weight", "internal_head.bias"]
