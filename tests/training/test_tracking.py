"""Trackers: files that hold what was logged, services only when chosen, failures that do not end a run."""

import importlib.metadata
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import textwrap
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from epg.config.settings import RunConfig
from epg.errors import UserError
from epg.runs import prepare_run, train
from epg.training.trackers import require_trackers, tracker_id
from epg.training.tracking import JSONLTracker, Trackers, open_trackers, read_log
from tests import started
from tests.helpers import tiny_config

SOURCE = str(Path(__file__).parents[2] / "src")


def config(*trackers: str, **training: Any) -> RunConfig:
    return tiny_config(model={"num_classes": 10}, training={"trackers": list(trackers), **training})


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    file = tmp_path / "samples.png"
    Image.new("RGB", (8, 4), "red").save(file)
    return file


def standin(folder: Path, name: str, code: str) -> None:
    """A package of that name and nothing but that code."""
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(textwrap.dedent(code))


@pytest.fixture
def only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder first on sys.path; tracking libraries imported so far are forgotten."""
    for name in [name for name in sys.modules if name.partition(".")[0] in ("wandb", "trackio")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    return tmp_path / "packages"


# Files --------------------------------------------------------------------------------------------------------------


def test_jsonl_and_tensorboard_hold_what_was_logged(tmp_path: Path, picture: Path) -> None:
    with open_trackers(config("tensorboard"), tmp_path, 0) as trackers:
        trackers.log(5, {"loss": 2.0, "denoising/q1": 0.5})
        trackers.picture(5, picture)
        trackers.log(10, {"loss": 1.0})
    assert read_log(tmp_path) == [{"step": 5, "loss": 2.0, "denoising/q1": 0.5}, {"step": 10, "loss": 1.0}]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(5, 2.0), (10, 1.0)]
    assert events.Scalars("denoising/q1")[0].value == 0.5
    assert (events.Images("samples")[0].width, events.Images("samples")[0].height) == (8, 4)


def test_without_trackers_there_is_only_the_jsonl(tmp_path: Path) -> None:
    with open_trackers(config(), tmp_path, 0) as trackers:
        trackers.log(1, {"loss": 1.0})
    assert [file.name for file in tmp_path.iterdir()] == ["log.jsonl"]


def test_resuming_drops_lines_beyond_the_checkpoint(tmp_path: Path) -> None:
    with open_trackers(config("tensorboard"), tmp_path, 0) as trackers:
        for step in (1, 2, 3):
            trackers.log(step, {"loss": float(step)})
    with (tmp_path / "log.jsonl").open("a") as stream:
        stream.write('{"step": 2, "lo')  # torn by a crash
    time.sleep(
        1
    )  # TensorBoard reads files in the order of their second, and within one of a number's digits: 10 before 9
    with open_trackers(config("tensorboard"), tmp_path, 2) as trackers:
        trackers.log(3, {"loss": 30.0})
    assert [line["loss"] for line in read_log(tmp_path)] == [1, 2, 30]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [e.value for e in events.Scalars("loss")] == [1, 2, 30]


def test_terminal_shows_losses_and_the_time_left_but_not_every_quarter(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_trackers(config(steps=100), tmp_path, 0) as trackers:
        trackers.log(40, {"loss": 1.5, "denoising/q1": 0.25, "eta_seconds": 3723.4})
    line = capsys.readouterr().err
    assert re.search(r"^diffusion 40/100 .*:\d\d:\d\d left loss 1\.5", line, re.MULTILINE)
    assert "q1" not in line


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
def test_a_full_disk_costs_numbers_but_not_the_run(tmp_path: Path) -> None:
    full = JSONLTracker(tmp_path, 0)
    full.stream.close()
    full.stream = Path("/dev/full").open("w", buffering=1)  # noqa: SIM115
    other = tmp_path / "other"
    other.mkdir()
    trackers = Trackers([full, JSONLTracker(other, 0)])
    with pytest.warns(UserWarning, match=r"JSONLTracker: .*No space left.*training goes on"):
        trackers.log(1, {"loss": 1.0})
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is said once
        trackers.log(2, {"loss": 1.0})
        trackers.log(3, {"loss": 1.0})
        trackers.close()
    assert len(read_log(other)) == 3


class ServiceError(Exception):
    """As libraries have them, derived from nothing in particular."""


ERRORS = [ServiceError("cannot reach\nthe service"), sqlite3.OperationalError("database is locked"), KeyError("step")]


class Failing:
    """A tracker whose library, service or database fails of everything."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def log(self, *_: object) -> None:
        raise self.error

    picture = log

    def close(self) -> None:
        raise self.error


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_whatever_a_tracker_fails_of_costs_numbers_but_not_the_run(error: Exception, tmp_path: Path) -> None:
    trackers = Trackers([Failing(error), JSONLTracker(tmp_path, 0)])
    with pytest.warns(UserWarning, match=rf"Failing: {type(error).__name__}.*; training goes on"):
        trackers.log(1, {"loss": 1.0})
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is said once
        trackers.log(2, {"loss": 1.0})
        trackers.evaluated(2, {"fid": 1.0})
        trackers.picture(2, tmp_path / "picture.png")
        trackers.close()
    assert len(read_log(tmp_path)) == 2


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # in TensorBoard's own thread
def test_a_database_that_breaks_on_the_way_costs_numbers_but_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorBoard's real writer, whose folder goes away, and a service that is gone when the run is continued."""
    run = prepare_run(config("tensorboard", steps=8, checkpoint_every=4, log_every=1), tmp_path / "run")
    original = run.trainer.train_step

    def step(*args: object) -> object:
        if run.trainer.step == 3:
            shutil.rmtree(tmp_path / "run" / "tensorboard")
            (tmp_path / "run" / "tensorboard").write_text("")
        if run.trainer.step == 6:
            raise ServiceError
        return original(*args)  # type: ignore[arg-type]

    run.trainer.train_step = step  # type: ignore[method-assign, assignment]
    with pytest.raises(ServiceError):
        run.trainer.run()
    with pytest.warns(UserWarning, match=r"--training.trackers tensorboard: could not start .*goes on without it"):
        train(config("tensorboard", steps=8, checkpoint_every=4, log_every=1), tmp_path / "run")
    assert [line["step"] for line in read_log(tmp_path / "run")] == list(range(1, 9))
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "tensorboard").write_text("")
    with pytest.raises(UserError, match=r"--training.trackers tensorboard: could not start .*Leave it out"):
        train(config("tensorboard", steps=8), tmp_path / "new")


# Services -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_missing_library_is_an_error_before_training(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    with pytest.raises(UserError, match=rf"--training.trackers {name}: not installed. pip install .*{name}"):
        train(config("tensorboard", name, steps=1), tmp_path / "run")
    assert not (tmp_path / "run" / "log.jsonl").exists()


def test_a_folder_of_that_name_is_no_library(tmp_path: Path, only: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B leaves a folder `wandb` where it ran, which Python would import as an empty package."""
    (only / "wandb").mkdir(parents=True)
    monkeypatch.setattr(sys, "path", [str(only)])
    with pytest.raises(UserError, match="not installed"):
        require_trackers(config("wandb"))


RECORDER = """
    import json, pathlib
    FILE = pathlib.Path(__file__).parent / "calls.jsonl"
    def note(*call):
        with FILE.open("a") as stream:
            stream.write(json.dumps(call, default=str) + "\\n")
    class Image:
        def __init__(self, path): self.path = path
        def __str__(self): return "image " + pathlib.Path(self.path).name
    class Run:
        def define_metric(self, name, step_metric): note("metric", name, step_metric)
        def log(self, numbers, step=None): note("log", numbers, step)
        def finish(self): note("finish")
    class Error(Exception): pass
    def init(**options):
        if options["project"] == "refused":
            raise Error("no API key configured")
        note("init", options)
        return Run()
    def finish(): note("finish")
"""


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_run_reaches_a_chosen_service(name: str, tmp_path: Path, only: Path) -> None:
    standin(only, name, RECORDER)
    train(config(name, steps=4, log_every=2, preview_every=4, checkpoint_every=100), tmp_path / "run")
    calls = [json.loads(line) for line in (only / name / "calls.jsonl").read_text().splitlines()]
    options = calls[0][1]
    assert options["project"] == "epg"
    assert options["resume"] == "allow"
    assert tracker_id(tmp_path / "run") in (options.get("id") or options["name"])
    assert options["config"]["training"]["steps"] == 4
    logs = [(numbers, step or numbers["step"]) for kind, numbers, step in (c for c in calls if c[0] == "log")]
    assert [step for numbers, step in logs] == [2, 4, 4]
    lines = read_log(tmp_path / "run")
    assert [numbers["loss"] for numbers, _ in logs[:2]] == [line["loss"] for line in lines]
    assert logs[2][0]["samples"] == "image step-00000004.png"
    assert calls[-1] == ["finish"]


def test_a_service_that_refuses_is_a_clear_error(tmp_path: Path, only: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    standin(only, "wandb", RECORDER)
    monkeypatch.setenv("WANDB_PROJECT", "refused")
    with pytest.raises(UserError, match=r"wandb: could not start \(.*no API key configured\).*WANDB_MODE=offline"):
        train(config("wandb", steps=1), tmp_path / "run")


def test_the_id_stays_with_the_folder(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    assert tracker_id(tmp_path) == tracker_id(tmp_path) != tracker_id(tmp_path / "other")


def test_unknown_trackers_are_refused() -> None:
    with pytest.raises(UserError, match=r"training.trackers.0: Input should be 'tensorboard', 'wandb' or 'trackio'"):
        config("mlflow")


def test_nothing_but_the_chosen_is_imported(tmp_path: Path) -> None:
    """A default run imports neither service, which could otherwise talk to the network on its own."""
    started.call(_train_and_look, tmp_path)


def _train_and_look(folder: str) -> None:
    assert not {"wandb", "trackio"} & set(sys.modules)
    train(config("tensorboard", steps=1), Path(folder))
    assert not {"wandb", "trackio"} & set(sys.modules)


def run_python(code: str, folder: Path, **environment: str) -> str:
    """Standard output of a fresh Python that knows the project and its tests."""
    paths = os.pathsep.join([SOURCE, str(Path(SOURCE).parent)])
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(folder)],
        env={**os.environ, "PYTHONPATH": paths, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


LOG_THREE = """
    import sys
    from pathlib import Path
    from PIL import Image
    from tests.training.test_tracking import config
    from epg.training.tracking import open_trackers
    folder = Path(sys.argv[1])
    Image.new("RGB", (8, 4), "red").save(folder / "picture.png")
    for steps in ((1, 2), (2, 3)):  # the second time as after a resume
        with open_trackers(config(TRACKER), folder, steps[0] - 1) as trackers:
            for step in steps:
                trackers.log(step, {"loss": 10.0 * step})
            trackers.picture(steps[-1], folder / "picture.png")
"""


def needs(library: str) -> pytest.MarkDecorator:
    """Skips where the real library is not installed; the tests above put stand-ins where an import would find them."""
    installed = any(True for _ in importlib.metadata.distributions(name=library))
    return pytest.mark.skipif(not installed, reason=f"{library} is not installed")


@needs("wandb")
def test_wandb_offline(tmp_path: Path) -> None:
    run_python(LOG_THREE.replace("TRACKER", '"wandb"'), tmp_path, WANDB_MODE="offline", WANDB_SILENT="true")
    files = list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert files
    assert all(tracker_id(tmp_path) in file.name for file in files)
    content = b"".join(file.read_bytes() for file in files)
    assert b"loss" in content
    assert b"samples" in content


@needs("trackio")
def test_trackio_local(tmp_path: Path) -> None:
    run_python(LOG_THREE.replace("TRACKER", '"trackio"'), tmp_path, TRACKIO_DIR=str(tmp_path / "trackio"))
    (database,) = (tmp_path / "trackio").glob("epg*.db")
    with sqlite3.connect(database) as connection:
        rows = connection.execute("select step, metrics from metrics order by id").fetchall()
    numbers = [(step, json.loads(metrics)) for step, metrics in rows]
    assert [(step, n["loss"]) for step, n in numbers if "loss" in n] == [(1, 10), (2, 20), (2, 20), (3, 30)]
    assert [step for step, n in numbers if "samples" in n] == [2, 3]
