"""Jobs whose process dies or hangs are told apart by the item they were at, and the others go on."""

import os
import signal
import time
from functools import partial

import pytest

from epg.data.workers.pool import run_jobs
from epg.errors import DataError, UserError


def job(folder, fatal, number, crashed, on_item):
    """Three items per job; each leaves a file, except those in `fatal`."""
    for item in range(3 * number, 3 * number + 3):
        on_item(item)
        if item in crashed:
            (folder / f"{item}.crashed").write_text(crashed[item])
            continue
        action = fatal.get(item)
        if action == "die":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif action == "die once" and not (folder / f"{item}.tried").exists():
            (folder / f"{item}.tried").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        elif action == "hang":
            time.sleep(600)
        elif action == "user":
            raise DataError("the message")
        elif action == "full":
            raise OSError(28, "No space left on device")
        elif action == "bug":
            raise KeyError("x")
        (folder / f"{item}.done").touch()


def outcomes(folder):
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_every_job_is_done_once(tmp_path, workers):
    counted = []
    run_jobs(partial(job, tmp_path, {}), range(5), workers, counted.append)
    assert outcomes(tmp_path) == {f"{i}.done" for i in range(15)}
    assert sum(counted) == 15


def result(number, crashed, on_item):
    on_item(number)
    return number * 2


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_results_come_in_the_order_of_the_jobs(workers):
    assert run_jobs(result, [5, 3, 4], workers, lambda n: None) == [10, 6, 8]
    assert run_jobs(result, [], workers, lambda n: None) == []


def test_items_that_kill_or_hang_their_process_are_given_up_and_the_rest_is_done(tmp_path):
    fatal = {1: "die", 5: "die once", 7: "hang"}
    hang_s = 8.0  # a worker of a busy machine takes seconds to start
    run_jobs(partial(job, tmp_path, fatal), range(4), 2, lambda n: None, hang_s=hang_s)
    left = {f"{i}.done" for i in range(12)} - {"1.done", "7.done"}
    assert left <= outcomes(tmp_path)
    assert "SIGSEGV" in (tmp_path / "1.crashed").read_text()
    assert "more than 8 s" in (tmp_path / "7.crashed").read_text()
    assert not (tmp_path / "5.crashed").exists(), "once may be bad luck"


@pytest.mark.parametrize(("kind", "error"), [("user", DataError), ("full", OSError), ("bug", RuntimeError)])
@pytest.mark.parametrize("workers", [1, 2])
def test_errors_come_back(tmp_path, workers, kind, error):
    with pytest.raises(error, match=r"the message|No space|KeyError"):
        run_jobs(partial(job, tmp_path, {4: kind}), range(4), workers, lambda n: None)


def start_badly(number, crashed, on_item):
    os._exit(3)


def test_a_worker_that_cannot_even_start_is_no_endless_loop():
    with pytest.raises(UserError, match=r"died before its first image \(exit code 3\)"):
        run_jobs(start_badly, range(2), 1, lambda n: None)
