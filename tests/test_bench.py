"""`epg bench` on networks of milliseconds."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from epg.bench import stage, steps
from epg.bench.command import variants
from epg.bench.images import RandomImages
from epg.cli import main
from epg.cli.bench import Bench
from epg.config.recipe import run_config, stages_of
from epg.config.settings import RunConfig
from epg.cost.training import training_flops
from epg.quickstart.study import Study
from tests.helpers import tiny_config

TINY = ["--tiny", "--device", "cpu", "--seconds", "0"]


def bench(tmp_path: Path, *arguments: str) -> list[dict[str, Any]]:
    file = tmp_path / "figures.json"
    assert main(["bench", *arguments, *TINY, "--json", str(file)]) == 0
    return json.loads(file.read_text())  # type: ignore[no-any-return]


def test_one_table_of_all_stages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each stage in a process of its own; two, as starting them is what takes long."""
    assert Bench("digits").chosen() == stages_of("digits")
    found = bench(tmp_path, "digits", "--stages", "pretraining", "diffusion")
    assert [one["stage"] for one in found] == ["pretraining", "diffusion"]
    assert [one.get("nfe") for one in found] == [None, 23]
    for one in found:
        assert one["images_per_second"] == pytest.approx(16 / one["step_seconds"])
        assert one["loader_images_per_second"] > 0
        assert one["checkpoint_gib"] * 2**30 > 4 * one["parameters"]
        assert one["memory_gib"] > 0.05
        assert one["mfu"] is None  # of a CPU there is no data sheet
        flops = one["measured_mfu"] * one["measured_peak_flops"]
        assert flops == pytest.approx(one["images_per_second"] * one["flops_per_image"])
    assert all(one["samples_per_second"] > 0 for one in found[1:])
    told = capsys.readouterr().out
    assert all(
        word in told for word in ("digits on 1 x cpu", "of measured peak", "(23 NFE)", "diffusion fp32 batch 16")
    )


def test_its_own_images_and_flags_of_the_recipe(tmp_path: Path) -> None:
    more = ["--own-images", "--training.batch-size", "8", "--training.precision", "bf16"]
    (found,) = bench(tmp_path, "digits", "--stages", "diffusion", *more)
    assert (found["batch_size"], found["precision"]) == (8, "bf16")
    assert found["flops_per_image"] < training_flops(run_config("digits", "diffusion"))


def test_compiled_and_not() -> None:
    config = tiny_config()
    assert [one.training.compile for one in variants(config, "both")] == [False, True]
    assert [one.training.compile for one in variants(config, "recipe")] == [config.training.compile]
    assert not any(one.training.preview_every or one.training.trackers for one in variants(config, "on"))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--stages", "dreaming"], "--stages dreaming: digits has pretraining, diffusion,"),
        (["--stages", "diffusion", "--model.encoder.witdh", "3"], "did you mean --model.encoder.width"),
        (["--seconds", "-1"], "--seconds -1"),
        (["--stages", "diffusion", "--own-images", "--data.source", "nowhere"], "nowhere"),
    ],
)
def test_what_is_wrong_is_said(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "digits", "--tiny", "--device", "cpu", *arguments]) in (2, 65)
    assert told in capsys.readouterr().err


def test_a_file_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    out = str(tmp_path / "file" / "figures.json")
    assert main(["bench", "digits", "--stages", "diffusion", *TINY, "--json", out]) == 74
    assert "--json" in capsys.readouterr().err


def test_mfu_is_against_data_sheet_and_measured_peak_and_not_clamped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    monkeypatch.setattr(stage, "measured_peak", lambda device, dtype: 500e12)
    config = run_config("imagenet256-xl", "diffusion")
    found = stage.use(config, torch.device("cuda"), 1000e12 / training_flops(config))
    assert found["measured_mfu"] == pytest.approx(2)
    assert found["mfu"] == pytest.approx(1000 / 989.4)


def test_random_images_are_of_the_recipe_s_kind() -> None:
    assert RandomImages(tiny_config(model={"num_classes": None}), 100).num_classes == 10
    assert set(RandomImages(tiny_config(model={"num_classes": 0}), 5).labels) == {-1}


def test_quickstart_plans_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def measured(config: RunConfig, dataset: object) -> float:
        seen.append(config.stage)
        return 0.25

    monkeypatch.setattr("epg.quickstart.study.seconds_per_step", measured)
    plan = Study("digits", None, 0)._measured_plan({}, 5.0, 0.0)
    assert seen == ["pretraining", "diffusion", "consistency"]
    assert set(plan.seconds_per_step.values()) == {0.25}


def test_more_steps_are_timed_where_there_is_time(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config()
    done: list[int] = []
    monkeypatch.setattr(steps.Trainer, "train_step", lambda self, batches: done.append(1))
    clock = iter(range(1000))
    monkeypatch.setattr(steps, "now", lambda device: float(next(clock)))
    trainer = steps.Trainer(steps.build_objective(config), RandomImages(config, 64), config, Path("unused"))
    assert steps.time_steps(trainer, warm_up=1, fewest=6) == pytest.approx(1 / 3)
    assert len(done) >= 1 + 6
    assert steps.time_steps(trainer, warm_up=0, fewest=3, seconds=60) == pytest.approx(1 / 3)
    assert len(done) > 7 + 30
