"""The training benchmark, on a network that takes milliseconds."""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from epg.config.recipe import run_config
from epg.cost.training import training_flops
from epg.errors import UserError
from tests.helpers import BENCHMARKS, script

FILE = BENCHMARKS / "train_step.py"
TINY = [
    *("--training.batch-size", "16", "--model.encoder.width", "16", "--model.encoder.heads", "2"),
    *("--model.decoder.width", "16", "--model.decoder.heads", "2", "--model.encoder.depth", "1"),
]
SHORT = ["--blocks", "2", "--block-steps", "3", "--warm-up", "1"]


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    return script("train_step")


@pytest.mark.parametrize("stage", ["pretraining", "diffusion", "consistency"])
def test_figures_of_a_stage(
    stage: str, benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "figures.json"
    benchmark.main(["digits", "--stage", stage, "--json", str(file), *SHORT, *TINY])
    (figures,) = json.loads(file.read_text())
    assert figures["batch_size"] == 16
    assert figures["images_per_second"] == pytest.approx(16 / figures["step_seconds"])
    assert len(figures["blocks"]) == 2
    assert figures["bare_step_seconds"] > 0
    config = run_config("digits", stage)  # type: ignore[arg-type]
    flops = figures["mfu"] * figures["peak_flops"] / figures["images_per_second"]
    assert 0 < flops < training_flops(config.model_copy(update={"model": with_classes(config.model)}))
    assert figures["variant"] == {"precision": "fp32", "compile": False, "activation_checkpointing": False}
    shown = capsys.readouterr().out
    assert "images/s" in shown
    assert f"digits {stage}" in shown


def with_classes(model: object) -> object:
    return model.model_copy(update={"num_classes": 10})  # type: ignore[attr-defined]


def test_variants_are_all_combinations(benchmark: ModuleType) -> None:
    options = benchmark.Options("digits", compile="both", checkpointing="both", precision=("fp32", "bf16"))
    found = [c.training for c in benchmark.variants(run_config("digits", "diffusion"), options)]
    assert len({(t.precision, t.compile, t.activation_checkpointing) for t in found}) == len(found) == 8
    assert all(t.steps > options.warm_up + options.blocks * options.block_steps for t in found)


@pytest.mark.slow
def test_as_a_command_every_variant_has_its_process(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    command = [sys.executable, str(FILE), "digits", "--checkpointing", "both", "--json", str(file), *SHORT, *TINY]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    figures = json.loads(file.read_text())
    assert [f["variant"]["activation_checkpointing"] for f in figures] == [False, True]


def test_a_wrong_flag_of_the_recipe_is_refused(benchmark: ModuleType) -> None:
    with pytest.raises(UserError, match=r"did you mean --model\.encoder\.width"):
        benchmark.main(["digits", "--model.encoder.witdh", "16"])


def test_every_seeded_fault_can_be_made_and_has_its_test() -> None:
    """That its test finds it takes minutes: `python benchmarks/seeded_faults.py`."""
    faults = [fault for _, fault in script("seeded_faults").listed()]
    assert len(faults) >= 70
    assert [fault for fault in faults if not fault.stands(BENCHMARKS.parent / "src")] == []
    for fault in faults:
        file, test = fault.node.split("::")
        assert f"def {test}(" in (BENCHMARKS.parent / file).read_text(), fault
