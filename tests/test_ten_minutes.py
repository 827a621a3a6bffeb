"""benchmarks/ten_minutes.py on the CPU with a network of milliseconds."""

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from epg.cli import main
from epg.errors import UserError

FILE = Path(__file__).parent.parent / "benchmarks" / "ten_minutes.py"


@pytest.fixture(scope="module")
def benchmark() -> Iterator[ModuleType]:
    """The script, which finds its parts beside itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FILE.parent)
        yield importlib.import_module("ten_minutes")


@pytest.fixture(scope="module")
def tiny(benchmark: ModuleType) -> list[str]:
    return importlib.import_module("minutes.study").TINY  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of blobs, a train and a test split."""
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    for split, count in (("train", 40), ("test", 12)):
        for i in range(count):
            small = random.integers(256, size=(4, 4, 3), dtype=np.uint8)
            small[..., i % 2] //= 4
            file = folder / split / "ab"[i % 2] / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(small).resize((32, 32), Image.Resampling.BICUBIC).save(file)
    return folder


def test_it_plans_trains_judges_and_ends_in_time(
    benchmark: ModuleType, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = time.monotonic()
    options = ["--tiny", "--device", "cpu", "--samples", "8", "--seconds", "30", "--out", str(tmp_path)]
    benchmark.main(["--data", str(data), "--arms", "pretrained", "scratch", *options, "--optimizer.kind", "adamw"])
    assert time.monotonic() - begun < 200  # of ten minutes
    found = json.loads((tmp_path / "ten_minutes.json").read_text())
    assert list(found["arms"]) == ["pretrained", "scratch"]
    for arm, stages in (("pretrained", ["pretraining", "diffusion"]), ("scratch", ["diffusion"])):
        results = found["arms"][arm]
        assert [stage["stage"] for stage in results["stages"]] == stages
        assert all(stage["steps"] >= 10 for stage in results["stages"])
        assert results["guidance 1"]["fd_efficientnet"] > 0
        assert set(results["stages"][-1]["linear"][-1]) >= {"step", "0.1", "10", "mean"}
    assert found["real"]["fd_efficientnet"] > 0
    assert found["gaussian"]["fd_efficientnet"] > 0
    pictures = {
        "gaussian",
        *(f"{arm}-{kind}" for arm in found["arms"] for kind in ("guidance-1", "guidance-2", "nearest")),
    }
    assert {file.stem for file in tmp_path.glob("*.png")} == pictures
    assert "FD-EfficientNet" in capsys.readouterr().out


def test_a_run_that_exists_is_judged(benchmark: ModuleType, tiny: list[str], data: Path, tmp_path: Path) -> None:
    command = ["finetune", "photos32", "--from-scratch", "--data.source", str(data), "--training.steps", "2"]
    command += [*tiny, "--evaluation.linear-every", "2", "--training.batch-size", "8"]
    assert main([*command, "--training.preview-every", "0", "--out", str(tmp_path / "run")]) == 0
    options = ["--device", "cpu", "--samples", "4", "--features", "none", "--out", str(tmp_path / "judged")]
    benchmark.main(["--data", str(data), "--judge", str(tmp_path / "run"), *options, "--tiny"])
    found = json.loads((tmp_path / "judged" / "ten_minutes.json").read_text())["arms"]["run"]
    assert [(stage["steps"], stage["linear"][-1]["step"]) for stage in found["stages"]] == [(2, 2)]
    assert {file.stem for file in (tmp_path / "judged").glob("*.png")} == {
        "run-guidance-1",
        "run-guidance-2",
        "run-nearest",
    }


def test_samples_of_another_program_are_judged_by_the_same_measures(
    benchmark: ModuleType, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = np.random.default_rng(0).integers(256, size=(20, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "theirs.npz", pixels, np.arange(20) % 2)
    options = ["--data", str(data), "--judge", str(tmp_path / "theirs.npz"), "--device", "cpu", "--out", str(tmp_path)]
    benchmark.main([*options, "--samples", "12"])
    found = json.loads((tmp_path / "ten_minutes.json").read_text())
    assert found["arms"]["theirs"]["samples"]["fd_efficientnet"] > found["real"]["fd_efficientnet"]
    assert {file.stem for file in tmp_path.glob("*.png")} == {"gaussian", "theirs", "theirs-nearest"}
    assert "theirs" in capsys.readouterr().out
    np.savez(tmp_path / "few.npz", pixels[:3])
    with pytest.raises(UserError, match=r"few\.npz: 3 images; as many as --samples"):
        benchmark.main([*options[:2], "--judge", str(tmp_path / "few.npz"), *options[4:], "--features", "none"])


def test_gpu_sh_says_what_it_can_do(tmp_path: Path) -> None:
    script = FILE.with_name("gpu.sh")
    environment = {**os.environ, "OUT": str(tmp_path / "out"), "PYTHON": sys.executable, "TINY": "1"}
    usage = subprocess.run([script, "dance"], capture_output=True, text=True, env=environment)
    assert usage.returncode == 2
    assert "gpu.sh pictures --data" in usage.stderr
    wrong = subprocess.run([script, "speed", "everything"], capture_output=True, text=True, env=environment)
    assert "choose small, photos32" in wrong.stdout
    assert not any((tmp_path / "out").iterdir())


def test_gpu_sh_times_a_stage(tmp_path: Path) -> None:
    environment = {**os.environ, "OUT": str(tmp_path / "out"), "PYTHON": sys.executable, "TINY": "1"}
    done = subprocess.run([FILE.with_name("gpu.sh"), "speed", "small"], capture_output=True, text=True, env=environment)
    assert "images/s" in done.stdout
    (found,) = json.loads((tmp_path / "out" / "step-small-diffusion.json").read_text())
    assert found["images_per_second"] > 0
