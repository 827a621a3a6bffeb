"""How long training took: by the clock, and in CPU time, which work beside it hardly changes."""

from pathlib import Path
from typing import Any

from epg.study.execute import Place
from epg.study.plan import Cell
from epg.training.tracking import read_log

TIMES = {"training_cpu_seconds": "training, CPU s", "training_seconds": "training, s"}
"""Key and name, the first that is known being shown."""


def training_times(cell: Cell, out: Path) -> dict[str, Any]:
    """Of a cell's steps and those of what it begins with (a weight file's are unknown, and left out): numbers as in
    receipts, by the keys of TIMES.

    From the log's lines, so that neither starting, previews nor evaluations count, nor steps that a crash undid. There
    is no CPU time of runs on other devices, or of before it was logged.
    """
    return {
        key: {"name": TIMES[key], "value": seconds, "error": None, "better": "lower"}
        for key, seconds in _seconds(cell, out).items()
    }


def _seconds(cell: Cell, out: Path) -> dict[str, float]:
    found = _of_run(cell, out)
    if not isinstance(cell.begins, Cell):
        return found
    before = _seconds(cell.begins, out)
    return {key: seconds + before[key] for key, seconds in found.items() if key in before}


def _of_run(cell: Cell, out: Path) -> dict[str, float]:
    log = [line for line in read_log(Place.of(cell, out).run) if line.get("images_per_second")]
    if not log:
        return {}
    steps = [line["step"] - before for line, before in zip(log, [0, *(line["step"] for line in log)], strict=False)]
    batch = cell.config.training.batch_size
    found = {"training_seconds": sum(n * batch / x["images_per_second"] for n, x in zip(steps, log, strict=True))}
    if all("cpu_seconds" in line for line in log):
        found["training_cpu_seconds"] = sum(line["cpu_seconds"] for line in log)
    return found
