"""D5: the same images whatever the batch, the number of processes, or how often the run was killed."""

import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from epg.errors import InterruptedRunError
from epg.sampling import write_samples
from tests.reliability import sampled
from tests.reliability.sampled import OneGenerator, pictures, request, run_and_kill, sample

COUNT = 96
REQUEST = request(COUNT)
KILLS = 10


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sampled.export(tmp_path_factory.mktemp("exact") / "export")


@pytest.fixture(scope="module")
def whole(export: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing disturbed."""
    out = tmp_path_factory.mktemp("exact") / "whole"
    write_samples(export, out, REQUEST)
    return out


def pixels(out, count=COUNT):
    return sampled.pixels(out, count)


@pytest.mark.parametrize(("batch_size", "count"), [(1, 50), (3, COUNT)])
def test_batch_sizes(export, whole, tmp_path, batch_size, count):
    write_samples(export, tmp_path, request(count, batch_size=batch_size))
    difference = np.abs(pixels(tmp_path, count) - pixels(whole, count))
    assert difference.max() <= 1
    assert difference.sum() <= difference.size / 10_000


def test_values_before_rounding(export):
    """In batches of several sizes, in order and in random orders."""
    assert sampled.largest_difference(export, 32, (1, 7, 32), random.Random(0)) <= sampled.VALUES


def test_killed_runs_end_as_an_undisturbed_one(export, whole, tmp_path):
    work = lambda: write_samples(export, tmp_path, REQUEST)  # noqa: E731
    kills = run_and_kill(work, tmp_path, COUNT, KILLS, random.Random(0))
    assert kills >= KILLS - 2  # it may finish before the last ones
    assert pictures(tmp_path) == pictures(whole)
    assert not list(tmp_path.glob(".*"))


def test_control_one_generator_for_all_batches(export, tmp_path):
    """The variant that most codes have survives neither another batch nor a kill."""
    with OneGenerator() as control:
        assert sampled.largest_difference(export, 32, (7, 32), random.Random(0)) > sampled.VALUES
        control.restart()
        write_samples(export, tmp_path / "whole", REQUEST)
        control.restart()
        (out := tmp_path / "killed").mkdir()
        run_and_kill(lambda: write_samples(export, out, REQUEST), out, COUNT, KILLS, random.Random(0))
    assert pictures(out) != pictures(tmp_path / "whole")


def test_two_processes_share_the_work(export, whole, tmp_path):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    for i in range(20, COUNT):
        (tmp_path / f"{i:06d}.png").unlink()
    (tmp_path / "grid.png").unlink()
    done = sample(export, tmp_path, COUNT, "--npz", processes=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("images in") == 1
    assert "continuing in" in done.stderr
    assert pictures(tmp_path) == pictures(whole)
    with np.load(tmp_path / "samples.npz") as archive:
        assert np.array_equal(archive["arr_0"][..., 0], pixels(whole))


@pytest.mark.slow
def test_a_refusal_reaches_every_process(export, whole):
    done = sample(export, whole, COUNT, "--seed", "5", processes=2)
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
    settings = ["--count", str(COUNT), "--batch-size", "4", "--device", "cpu", "--guidance", "2"]
    command = [sys.executable, "-m", "epg.cli", "sample", str(export), "--out", str(disk), *settings]
    namespace = ["unshare", "-rm", "sh", "-c", script, str(disk), str(disk)]
    done = subprocess.run([*namespace, *command], capture_output=True, text=True, timeout=300)
    if "unshare failed" in done.stderr or "permission denied" in done.stderr:
        pytest.skip("no mount namespaces here")
    assert done.returncode == 74, done.stderr
    assert "No space left on device" in done.stderr
    assert "The same command then continues" in done.stderr
    assert "Traceback" not in done.stderr
    copy = Path(f"{disk}.copy")
    begun = pictures(copy)
    assert 5 < len(begun) < COUNT
    assert begun.items() <= pictures(whole).items()
    assert not list(copy.glob(".*.tmp"))
    write_samples(export, copy, REQUEST)
    assert pictures(copy) == pictures(whole)


def test_bfloat16_stays_close(export, whole, tmp_path):
    write_samples(export, tmp_path, request(24, dtype="bf16"))
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
