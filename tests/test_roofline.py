"""benchmarks/roofline.py: what it counts is what arithmetic says."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from epg.cli import configure
from epg.cost.training import training_flops

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def benchmark() -> Iterator[ModuleType]:
    """The script, which finds its parts beside itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        yield importlib.import_module("roofline")


@pytest.mark.parametrize("stage", ["pretraining", "diffusion", "consistency"])
def test_flops_of_a_step_are_those_of_arithmetic(benchmark: ModuleType, stage: str) -> None:
    """Recorded operation by operation, forward and back, without a number in any tensor."""
    config = configure("digits", stage, ["--model.num-classes", "10", "--training.batch-size", "8"])  # type: ignore[arg-type]
    operations = benchmark.training_step(config).operations
    counted = sum(o.flops for o in operations if o.phase == "loss")
    assert counted == pytest.approx(8 * training_flops(config), rel=0.03)
    parameters = sum(max(o.written.values(), default=0) for o in operations if "adamw" in o.name)
    assert parameters > 0  # the optimizer was recorded, too
    assert {o.phase for o in operations} == {"drawing", "loss", "update"}


def test_fusing_moves_fewer_bytes_and_launches_less(benchmark: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark.main(["small", "--gpu", "H200", "--classes", "10", "--training.precision", "bf16"])
    benchmark.main(["digits", "--sampling", "--classes", "10", "--batch-size", "4"])
    out = capsys.readouterr().out
    alone, fused = (float(cell.split()[0]) for cell in line_of(out, "together")[-2:])
    assert 0 < fused < alone
    launches = line_of(out, "together")[0].replace(",", "").split(" and ")
    assert int(launches[1]) < int(launches[0]) / 2
    assert "samples/s" in out


def line_of(out: str, name: str) -> list[str]:
    """The cells of the first row of this name that are not empty."""
    line = next(line for line in out.splitlines() if f" {name} " in line)
    return [cell.strip() for cell in line.split("│")[2:] if cell.strip()]
