"""Ctrl-C and SIGTERM at any moment of any verb: one line, and exit code 75 where the same command continues."""

import faulthandler
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from epg.cli import main
from tests import started
from tests.generators import save_run
from tests.helpers import tiny_config

# Commands that take longer than anybody waits, and the exit code after Ctrl-C.
LONG = {
    "sample": ("{run} --count 20000 --out {out}", 75),
    "evaluate": ("{run} --count 900000 --features encoder={run} --out {out}", 130),
    "sweep": ("{run} --count 900000 --guidance 1 2 --features encoder={run} --out {out}", 75),
    "neighbours": ("{run} --count 900000 --out {out}", 130),
    "denoising": ("{run} --levels 1000 --out {out}", 130),
    "probe": ("{run} --levels 0.1 0.2 0.3 0.4 0.5 0.6 0.7 0.8 0.9 1 2 3 4 5 --out {out}", 130),
    "reference": ("{set} --image-size 600 --features efficientnet --device cpu --out {out}", 130),
    "prepare": ("{set} {out} --image-size 600 --workers 1", 75),
    "inspect": ("{set} --image-size 600 --workers 1 --sheet {out}.png", 130),
    "quickstart": ("--data {set} --minutes 9 --out {out}", 75),
    "finetune": ("digits --from-scratch --training.steps 900000 --training.device cpu --out {out}", 75),
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("long")
    for i in range(40):
        (root / "set" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.effect_noise((1200, 1200), 50).save(root / "set" / "ab"[i % 2] / f"{i}.png", compress_level=0)
    run = save_run(root / "run", tiny_config(model={"num_classes": 10}), names=[str(digit) for digit in range(10)])
    return {"run": run, "set": root / "set"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("verb", LONG)
def test_one_line_whatever_a_verb_is_about(
    verb: str, number: signal.Signals, places: dict[str, Path], tmp_path: Path
) -> None:
    """In a forked process, which has imported most of what it needs: a signal in an import is for the next test."""
    words, code = LONG[verb]
    printed = tmp_path / "printed"

    def work() -> None:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(os.open(printed, os.O_CREAT | os.O_WRONLY | os.O_APPEND), stream.fileno())
        faulthandler.dump_traceback_later(12)
        os._exit(main([verb, *words.format(**places, out=tmp_path / "out").split()]))

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    time.sleep(0.7)
    assert process.pid is not None
    os.kill(process.pid, number)
    process.join(120)
    said = printed.read_text().splitlines()
    assert process.exitcode == (code if code == 75 else 128 + number), said
    assert said[-1].startswith("error: ")
    assert {"Ctrl-C", "SIGINT"} & set(re.findall(r"[\w-]+", said[-1])) or "SIGTERM" in said[-1], said[-1]
    assert not [line for line in said if "Traceback" in line or "Exception" in line], said


def test_training_that_was_stopped_as_a_whole_goes_on(tmp_path: Path) -> None:
    """Ctrl-Z, and `fg` after longer than the timeout of a hang."""
    words = "finetune digits --from-scratch --training.steps 900000 --training.device cpu --training.timeout 3"

    def work() -> None:
        os._exit(main([*words.split(), "--training.log-every", "1", "--out", str(tmp_path / "run")]))

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    assert process.pid is not None
    log = tmp_path / "run" / "log.jsonl"
    while not (log.exists() and log.read_text().count("\n") > 2):
        assert process.exitcode is None
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(4.5)
    seen = log.read_text().count("\n")
    os.kill(process.pid, signal.SIGCONT)
    while log.read_text().count("\n") <= seen + 5:
        assert process.exitcode is None, process.exitcode
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    assert process.exitcode == 75


def caught(pid: int) -> bool:
    """Whether a process has taken over SIGTERM, which Python leaves alone: from then on it is ours."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    mask = int(status.split("SigCgt:")[1].split()[0], 16)
    return bool(mask >> (signal.SIGTERM - 1) & 1)


def importing_torch(pid: int) -> bool:
    try:
        return "libtorch_cpu" in Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return False


@pytest.mark.parametrize("moment", [caught, importing_torch])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_line_during_the_start(moment, number: signal.Signals, places: dict[str, Path], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "epg.cli", "evaluate", str(places["run"]), "--out", str(tmp_path / "out")]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    ) as run:
        while run.poll() is None and not moment(run.pid):
            time.sleep(0.002)
        run.send_signal(number)
        said = run.stderr.read() if run.stderr else ""
    name = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
    assert (run.returncode, said) == (128 + number, f"error: stopped by {name}\n")


def test_a_second_ctrl_c_ends_at_once(places: dict[str, Path], tmp_path: Path) -> None:
    """Also a process that does not come to its end, as one that waits for a thread."""
    log = tmp_path / "log"
    code = (
        "import sys, threading, time; from epg.cli import entry\n"
        "threading.Thread(target=lambda: time.sleep(60)).start()\n"
        f"sys.argv[1:] = ['sample', {str(places['run'])!r}, '--count', '20000', '--out', {str(tmp_path / 'out')!r}]\n"
        "sys.exit(entry())"
    )
    with log.open("w") as said:
        run = started.start("-c", code, stdout=said, stderr=said)
    while not list(tmp_path.glob("out/00*.png")):
        assert run.running, log.read_text()
        time.sleep(0.01)
    run.signal(signal.SIGINT)
    while "the same command continues" not in log.read_text():  # the first was answered
        assert run.running, log.read_text()
        time.sleep(0.01)
    begun = time.monotonic()
    run.signal(signal.SIGINT)
    assert run.wait() == [-signal.SIGINT]
    assert time.monotonic() - begun < 30


def test_a_second_ctrl_c_ends_training_at_once(tmp_path: Path) -> None:
    """In a long step, and where a thread would be waited for."""
    log = tmp_path / "log"
    code = (
        "import sys, threading, time; from epg.cli import entry; from epg.training import loop\n"
        "def step(*given):\n"
        "    print('a step', flush=True)\n"
        "    for _ in range(600): time.sleep(0.1)\n"
        "loop.Trainer.train_step = step\n"
        "threading.Thread(target=lambda: time.sleep(60)).start()\n"
        "sys.argv[1:] = ['finetune', 'digits', '--from-scratch', '--data.workers', '0']\n"
        f"sys.argv += ['--out', {str(tmp_path / 'run')!r}]\n"
        "sys.exit(entry())"
    )
    with log.open("w") as said:
        run = started.start("-c", code, stdout=said, stderr=said)
    while "a step\n" not in log.read_text():
        assert run.running, log.read_text()
        time.sleep(0.01)
    run.signal(signal.SIGINT)
    time.sleep(1)
    assert run.running  # the step is to be finished, and saved
    begun = time.monotonic()
    run.signal(signal.SIGINT)
    assert run.wait() == [-signal.SIGINT]
    assert time.monotonic() - begun < 30  # of the sixty that the step and the thread take
