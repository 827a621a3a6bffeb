"""The sampling benchmark, on a network that takes milliseconds."""

import json
import time
from pathlib import Path
from types import ModuleType

import pytest

from epg.sampling.job import Job
from tests.helpers import script

TINY = [
    *("--model.encoder.width", "16", "--model.encoder.heads", "2", "--model.encoder.depth", "1"),
    *("--model.decoder.width", "16", "--model.decoder.heads", "2"),
    *("--count", "4", "--batch-size", "2", "--rounds", "2"),
]


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    return script("sample")


def test_figures(benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "figures.json"
    benchmark.main(["digits", "--sampling.steps", "6", "--json", str(file), *TINY])
    figures = json.loads(file.read_text())
    assert sum(int(size) * number for size, number in figures["calls"].items()) == 2 * figures["nfe"]
    assert set(figures["calls"]) == {"2", "4"}  # guidance doubles the batch inside its interval
    assert figures["images_per_second"] == pytest.approx(
        4 / sorted(whole["wall"] for _, whole in figures["rounds"])[0], rel=1.0
    )
    flops = figures["share_of_peak"] * figures["peak_flops"] / figures["images_per_second"]
    assert flops == pytest.approx(1e9 * figures["gflops_per_image"])
    assert "images/s" in capsys.readouterr().out


@pytest.mark.slow
def test_time_between_evaluations_is_overhead(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: work that the sampler does beside the network shows."""
    draw_batch = Job.draw_batch

    def slow(self: Job, indices: range) -> object:
        end = time.process_time() + 0.3
        while time.process_time() < end:
            pass
        return draw_batch(self, indices)

    options = benchmark.Options("digits", count=4, batch_size=2, rounds=2)
    config = benchmark.configure("digits", "diffusion", [*TINY[:10], "--sampling.steps", "2"])
    plain = benchmark.measure(config, options)["overhead"]
    monkeypatch.setattr(Job, "draw_batch", slow)
    assert benchmark.measure(config, options)["overhead"] > plain + 0.5


def test_a_count_that_is_no_multiple_is_refused(benchmark: ModuleType) -> None:
    with pytest.raises(SystemExit, match="multiple"):
        benchmark.main(["digits", "--count", "5", "--batch-size", "2"])
