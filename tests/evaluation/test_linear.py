"""The ratio to the best linear denoiser: its numbers, in the log of a run and in `epg denoising`."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from epg.cli import main
from epg.data.configured import open_training_data
from epg.denoiser import Denoiser
from epg.errors import UserError
from epg.evaluation.held_out import held_out_of
from epg.evaluation.linear import LEVELS, MEAN, linear_judge
from epg.objectives.base import normalizer_for
from epg.runs import train
from epg.training.spectra import measure
from epg.training.tracking import read_log
from tests.helpers import tiny_config, tiny_epg
from tests.training.test_loop import tiny

NAMES = [f"linear/{level:g}" for level in LEVELS]


def judged(denoiser: Denoiser, config):
    dataset = open_training_data(config.data)
    return linear_judge(dataset, held_out_of(config.data), config, normalizer_for(config))(denoiser)


def test_the_linear_denoiser_itself_has_a_ratio_of_one():
    config = tiny_config(objective={"parameterization": "spectral", "spectrum": "global"}, model={"num_classes": 0})
    network = tiny_epg(config)
    torch.nn.init.zeros_(network.decoder.out.weight)
    torch.nn.init.zeros_(network.decoder.out.bias)
    measure(network.spectrum, open_training_data(config.data), config, normalizer_for(config))
    ratios = judged(Denoiser(network, "spectral"), config)
    assert [*ratios] == [*NAMES, MEAN]
    assert all(value == pytest.approx(1, abs=1e-4) for value in ratios.values())


def test_predicting_nothing_is_worst_where_there_is_least_noise():
    config = tiny_config(model={"num_classes": 0})
    network = tiny_epg(config)
    torch.nn.init.zeros_(network.decoder.out.weight)
    torch.nn.init.zeros_(network.decoder.out.bias)
    ratios = [judged(Denoiser(network, "x"), config)[name] for name in NAMES]
    assert ratios == sorted(ratios, reverse=True)
    assert ratios[0] > 20
    assert ratios[-1] > 1


def test_a_run_logs_it_and_the_report_says_the_same(tmp_path, capsys):
    config = tiny("diffusion", training={"steps": 8, "log_every": 5}, evaluation={"linear_every": 3})
    run = train(config, tmp_path / "run")
    judged_at = {line["step"]: line for line in read_log(run.folder) if "linear/mean" in line}
    assert [*judged_at] == [3, 6, 8]
    assert [line["step"] for line in read_log(run.folder)] == [3, 5, 6, 8]
    assert judged_at[8][NAMES[0]] < judged_at[3][NAMES[0]]
    assert main(["denoising", str(run.folder), "--count", "20", "--levels", "2", "--out", str(tmp_path / "d")]) == 0
    assert "best linear denoiser" in capsys.readouterr().out
    found = json.loads((tmp_path / "d" / "denoising.json").read_text())["linear"]
    assert found == pytest.approx({name: judged_at[8][name] for name in found}, rel=1e-4)


def test_without_held_out_images_it_says_how_to_keep_some(tmp_path):
    for i in range(12):
        folder = tmp_path / "images" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), 20 * i, np.uint8)).save(folder / f"{i}.png")
    changes = {"evaluation": {"linear_every": 3}, "data": {"source": str(tmp_path / "images")}}
    with pytest.raises(UserError, match=r"data\.fraction"):
        train(tiny("diffusion", **changes), tmp_path / "run")
    changes["data"]["fraction"] = 0.5
    run = train(tiny("diffusion", **changes, training={"batch_size": 4, "steps": 3}), tmp_path / "run")
    assert len(run.dataset) == 6
