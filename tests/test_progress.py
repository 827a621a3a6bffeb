"""What a person sees while it runs: in a pseudo-terminal of a given size, in a pipe, in a notebook."""

import contextlib
import fcntl
import os
import pty
import re
import struct
import sys
import termios
from pathlib import Path
from types import ModuleType

import pytest

from epg.progress import Display
from tests import started
from tests.generators import save_run
from tests.helpers import tiny_config

TRAIN = [
    *("finetune", "digits", "--from-scratch", "--training.steps", "60", "--training.log-every", "5"),
    *("--training.batch-size", "64", "--training.device", "cpu", "--training.trackers", "--training.power-ema", "0.1"),
]
CONTROL = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


def in_terminal(arguments: list[str], columns: int, **environment: str) -> str:
    """Everything that a command writes to a terminal of this width, control codes included."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    settings = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "JPY_PARENT_PID", "MPLBACKEND")}
    with os.fdopen(theirs, "w") as terminal:
        settings |= {"TERM": "xterm-256color", **environment}
        run = started.start("-m", "epg.cli", *arguments, stdout=terminal, stderr=terminal, environment=settings)
    said = b""
    with contextlib.suppress(OSError):  # the other end is closed
        while part := os.read(ours, 65536):
            said += part
    os.close(ours)
    assert run.wait() == [0], said[-2000:].decode()
    return said.decode()


def frames(said: str) -> list[str]:
    """What stood on the lines, without colours and movements."""
    return [CONTROL.sub("", line) for line in re.split(r"[\r\n]+", said)]


@pytest.mark.parametrize("columns", [80, 120])
def test_training_shows_bar_steps_rate_and_time_left_first(columns: int, tmp_path: Path) -> None:
    said = in_terminal([*TRAIN, "--out", str(tmp_path / "run")], columns)
    bars = [line for line in frames(said) if re.search("[━╸╺]{8}", line)]
    assert bars
    assert max(map(len, bars)) <= columns
    last = bars[-1]
    assert re.match(r"diffusion [━╸╺]{8,} 60/60 [\d.]+ images/s 0:00:0\d left loss [\d.]+", last), last
    assert ("grad_norm" in last) == (columns == 120)
    below = frames(said)[frames(said).index(last) + 1]
    assert len(below) <= columns
    assert "lr " in below or "grad_norm" in below
    assert said.count("\x1b[?25h") >= 1  # the cursor is back


def test_sampling_shows_the_same(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", tiny_config())
    said = in_terminal(["sample", str(run), "--count", "600", "--out", str(tmp_path / "out"), "--batch-size", "8"], 80)
    bars = [line for line in frames(said) if re.search("[━╸╺]{8}", line)]
    assert re.match(r"sampling [━╸╺]{8,40} 600/600 [\d.]+ images/s 0:00:00 left", bars[-1]), bars[-1]


def test_a_pipe_gets_plain_lines(tmp_path: Path) -> None:
    """Also where colours are forced, as continuous integration does."""
    done = started.epg(*TRAIN, "--out", tmp_path, environment={**os.environ, "FORCE_COLOR": "1"})
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("diffusion ")]
    assert len(lines) >= 12
    assert re.match(r"diffusion 60/60 [\d.]+ images/s 0:00:00 left loss [\d.]+ \S+ [\d.]+", lines[-1]), lines[-1]
    assert max(map(len, lines)) <= 160
    assert "\x1b" not in done.stderr
    assert "\r" not in done.stderr


def test_a_notebook_gets_plain_lines_too(tmp_path: Path) -> None:
    """A notebook's `!` runs commands in a terminal that cannot move its cursor, with these variables."""
    inside = {"JPY_PARENT_PID": "1", "MPLBACKEND": "module://matplotlib_inline.backend_inline", "FORCE_COLOR": "1"}
    said = in_terminal([*TRAIN, "--out", str(tmp_path)], 80, **inside)
    assert "\x1b[1A" not in said  # up
    assert "\x1b[2K" not in said  # erase
    assert "━" not in said
    assert 12 <= len(re.findall(r"diffusion \d+/60", said)) < 20


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120, 200])
@pytest.mark.parametrize("steps", [60, 1_000_000])
def test_long_numbers_never_push_the_bar_out(width: int, steps: int) -> None:
    display = Display("pretraining", steps, images=1024)
    display.advance(steps // 2)
    display.tell({f"name_{i}": -1.2345e-05 * 3**i for i in range(30)}, rate=123456.7)
    title, bar, beside, below = display.layout(width)
    assert len(title) + bar + len(beside) + 2 * (bar > 0) <= width
    assert len(below) <= width
    if width >= 80:
        assert bar >= 10
        assert beside.startswith(f"{steps // 2}/{steps} 123457 images/s ")
        assert title == "pretraining"


def test_a_long_run_in_a_pipe_is_a_few_hundred_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    display = Display("diffusion", 1_000_000, images=8)
    for step in range(50, 1_000_001, 50):  # ten days
        now = step * 0.864
        display.advance(step)
        display.tell({"loss": 1.0})
    lines = capsys.readouterr().err.splitlines()
    assert 300 < len(lines) < 2000
    assert lines[0].startswith("diffusion 50/1000000 ")
    assert lines[-1].startswith("diffusion 1000000/1000000 ")


def test_in_a_notebook_it_is_a_text_that_is_renewed(monkeypatch, capsys):
    """One text below the cell, and no line of it on stderr, which a notebook would show one below the other."""

    class ZMQInteractiveShell:
        pass

    class Handle:
        texts: list[str] = []  # noqa: RUF012

        def update(self, content, raw):
            self.texts.append(content["text/plain"])

    def display(content, raw, display_id):
        handle.update(content, raw)
        return handle

    handle = Handle()
    ipython = ModuleType("IPython")
    ipython.get_ipython = ZMQInteractiveShell
    inside = ModuleType("IPython.display")
    inside.display = display
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", inside)
    monkeypatch.setattr("epg.cell.PAUSE_S", 0.0)
    with Display("training", 4, images=8) as shown:
        for step in range(1, 5):
            shown.advance(step)
            shown.tell({"loss": 1.0 / step})
    assert handle.texts[0].startswith("training ─")
    assert "4/4" in handle.texts[-1]
    assert "loss 0.25" in handle.texts[-1]
    assert "─" not in handle.texts[-1]
    assert capsys.readouterr().err == ""
