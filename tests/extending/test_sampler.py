"""A sampler from outside of the package: a function and one line of the table."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from epg.checkpoint.loading import load
from epg.cli import main
from epg.config.recipe import run_config
from epg.config.sections import SamplingConfig
from epg.config.validation import problems
from epg.pipeline import EPGPipeline
from epg.samplers import SAMPLERS, Denoise, Sampler, Watch
from tests.generators import save_run
from tests.helpers import tiny_config


def midpoint(denoise: Denoise, x: Tensor, sigmas: Tensor, watch: Watch | None = None, *, fewest: float = 0.0) -> Tensor:
    """Second order by the slope halfway, first order below the level `fewest`."""
    for i, (t, s) in enumerate(pairwise(sigmas.tolist())):
        denoised = denoise(x, t)
        slope, middle = (x - denoised) / t, (t + s) / 2
        if t > fewest and s > 0:
            halfway = x + (middle - t) * slope
            slope = (halfway - denoise(halfway, middle)) / middle
        x = x + (s - t) * slope
        if watch:
            watch(i, x, denoised)
    return x


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    SAMPLERS["midpoint"] = Sampler(midpoint, levels={"fewest": 1.0})
    yield
    del SAMPLERS["midpoint"]


def test_it_draws_and_its_cost_is_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(save_run(tmp_path / "run", tiny_config()))
    arguments = ["sample", run, "--sampler", "midpoint", "--steps", "4", "--count", "3"]
    assert main([*arguments, "--out", str(tmp_path / "samples")]) == 0
    assert "midpoint, 6 network evaluations" in capsys.readouterr().err  # the last two steps begin below its level
    model = load(run)
    settings = model.sampling.model_copy(update={"sampler": "midpoint", "steps": 4})
    drawn = model.sample([0, 1], sampling=settings)
    assert not torch.equal(drawn, model.sample([0, 1]))
    pipe = EPGPipeline.from_generator(model)
    values = pipe([0, 1], sampler="midpoint", num_inference_steps=4, generator=0, output_type="latent").images
    assert torch.equal(model.normalizer.decode(values), drawn)


def test_flags_and_recipes_know_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = run_config("digits", "diffusion")
    sampling = config.sampling.model_copy(update={"sampler": "midpoint"})
    assert list(problems(config.model_copy(update={"sampling": sampling}))) == []
    one_step = run_config("digits", "consistency").model_copy(update={"sampling": sampling})
    assert any("--sampling.sampler midpoint: for diffusion models" in problem for problem in problems(one_step))
    with pytest.raises(ValidationError, match="there is no midpint; choose one of heun"):
        SamplingConfig(sampler="midpint")  # also of a saved pipeline, or of a stage that does not sample
    run = str(save_run(tmp_path / "run", tiny_config()))
    assert main(["sample", run, "--sampler", "midpint", "--out", str(tmp_path / "samples")]) == 2
    assert "heun, euler, edm_stochastic, euler_ancestral, one_step, multistep, midpoint" in capsys.readouterr().err
