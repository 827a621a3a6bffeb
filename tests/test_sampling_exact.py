"""D5: the same images whatever the batch, the number of processes, or how often the run was killed."""

import hashlib
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from epg.errors import InterruptedRunError
from epg.generator import Generator
from epg.sampling import Request, write_samples
from tests.generators import save_export
from tests.helpers import tiny_config

COUNT = 96
SETTINGS = ["--count", str(COUNT), "--batch-size", "4", "--device", "cpu", "--guidance", "2"]
REQUEST = Request(count=COUNT, batch_size=4, device="cpu", changes={"guidance": 2.0})
KILLS = 10


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sampling = {"sampler": "edm_stochastic", "steps": 6}
    return save_export(tmp_path_factory.mktemp("exact") / "export", tiny_config(sampling=sampling))


@pytest.fixture(scope="module")
def whole(export: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing disturbed."""
    out = tmp_path_factory.mktemp("exact") / "whole"
    write_samples(export, out, REQUEST)
    return out


def pictures(out: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in out.glob("*.png")}


def pixels(out: Path, count: int = COUNT) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.stack([np.asarray(Image.open(out / f"{i:06d}.png"), np.int64) for i in range(count)])


@pytest.mark.parametrize(("batch_size", "count"), [(1, 50), (3, COUNT)])
def test_batch_sizes(export, whole, tmp_path, batch_size, count):
    write_samples(export, tmp_path, Request(**{**vars(REQUEST), "batch_size": batch_size, "count": count}))
    difference = np.abs(pixels(tmp_path, count) - pixels(whole, count))
    assert difference.max() <= 1
    assert difference.sum() <= difference.size / 10_000


def run_and_kill(work: Callable[[], None], out: Path, chooser: random.Random) -> int:
    """Starts the work again and again, killing it after a few more images each time; returns the number of kills."""
    processes, kills = multiprocessing.get_context("fork"), 0
    while True:
        process = processes.Process(target=work)
        process.start()
        goal = len(list(out.glob("0*.png"))) + chooser.randint(1, COUNT // KILLS - 3)
        while process.is_alive() and (kills >= KILLS or len(list(out.glob("0*.png"))) < goal):
            time.sleep(0.001)
        if not process.is_alive():
            assert process.exitcode == 0
            return kills
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        kills += 1


def test_killed_runs_end_as_an_undisturbed_one(export, whole, tmp_path):
    kills = run_and_kill(lambda: write_samples(export, tmp_path, REQUEST), tmp_path, random.Random(0))
    assert kills >= KILLS - 2  # it may finish before the last ones
    assert pictures(tmp_path) == pictures(whole)
    assert not list(tmp_path.glob(".*"))


def test_control_one_generator_for_all_batches(export, tmp_path, monkeypatch):
    """The variant that most codes have: noise that depends on what was drawn before does not survive a kill."""
    shared = torch.Generator().manual_seed(0)
    monkeypatch.setattr(
        Generator,
        "unit_noise",
        lambda self, indices, seed, step=-1: torch.randn(len(indices), *self.image_shape, generator=shared),
    )
    shared.manual_seed(0)
    write_samples(export, tmp_path / "whole", REQUEST)
    shared.manual_seed(0)
    out = tmp_path / "killed"
    out.mkdir()
    run_and_kill(lambda: write_samples(export, out, REQUEST), out, random.Random(0))
    assert pictures(out) != pictures(tmp_path / "whole")


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def torchrun(export: Path, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "-m", "epg.cli", "sample", str(export), "--out", str(out), *SETTINGS, *more]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)


def test_two_processes_share_the_work(export, whole, tmp_path):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    for i in range(20, COUNT):
        (tmp_path / f"{i:06d}.png").unlink()
    (tmp_path / "grid.png").unlink()
    done = torchrun(export, tmp_path, "--npz")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("images in") == 1
    assert "continuing in" in done.stderr
    assert pictures(tmp_path) == pictures(whole)
    with np.load(tmp_path / "samples.npz") as archive:
        assert np.array_equal(archive["arr_0"][..., 0], pixels(whole))


@pytest.mark.slow
def test_a_refusal_reaches_every_process(export, whole):
    done = torchrun(export, whole, "--seed", "5")
    assert done.returncode != 0
    assert "was begun with other settings" in done.stderr
    assert "rank 0 failed" in done.stderr


def test_a_full_disk_ends_clearly_and_the_run_continues(export, whole, tmp_path):
    """A real file system of a few pages; the same command finishes once there is room."""
    script = (
        'mount -t tmpfs -o size=256k tmpfs "$1" && shift && "$@"; code=$?; rm -f "$0/ballast"; cp -r "$0"/. "$0.copy"; '
        "exit $code"
    )
    (disk := tmp_path / "disk").mkdir()
    command = [sys.executable, "-m", "epg.cli", "sample", str(export), "--out", str(disk), *SETTINGS]
    namespace = ["unshare", "-rm", "sh", "-c", script, str(disk), str(disk)]
    done = subprocess.run([*namespace, *command], env=environment(), capture_output=True, text=True, timeout=300)
    if "unshare failed" in done.stderr or "permission denied" in done.stderr:
        pytest.skip("no mount namespaces here")
    assert done.returncode == 74, done.stderr
    assert "No space left on device" in done.stderr
    assert "the same command then continues" in done.stderr
    assert "Traceback" not in done.stderr
    copy = Path(f"{disk}.copy")
    begun = pictures(copy)
    assert 5 < len(begun) < COUNT
    assert begun.items() <= pictures(whole).items()
    assert not list(copy.glob(".*.tmp"))
    write_samples(export, copy, REQUEST)
    assert pictures(copy) == pictures(whole)


def test_bfloat16_stays_close(export, whole, tmp_path):
    few = {"count": 24, "dtype": "bf16"}
    write_samples(export, tmp_path, Request(**{**vars(REQUEST), **few}))
    assert 0 < np.abs(pixels(tmp_path, 24) - pixels(whole, 24)).mean() <= 2


def test_interrupting_says_how_to_go_on(export, tmp_path):
    def work() -> None:
        with pytest.raises(InterruptedRunError, match="the same command continues") as error:
            write_samples(export, tmp_path, REQUEST)
        sys.exit(error.value.exit_code)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    while process.is_alive() and not list(tmp_path.glob("00001*.png")):
        time.sleep(0.001)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    process.join()
    assert process.exitcode == 75
    assert list(tmp_path.glob("0*.png"))
