"""Where numbers and pictures of a run go: JSONL and TensorBoard files, and the terminal."""

import json
import sys
import time
from pathlib import Path
from typing import IO, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Numbers = dict[str, float]


class Tracker(Protocol):
    """Receives numbers (and sample grids) as training goes on."""

    def log(self, step: int, numbers: Numbers) -> None: ...

    def picture(self, step: int, file: Path) -> None: ...

    def close(self) -> None: ...


class JSONLTracker:
    """One line per logged step in `log.jsonl`; after a resume, lines beyond the checkpoint are dropped first."""

    def __init__(self, folder: Path, resumed_at: int) -> None:
        self.file = folder / "log.jsonl"
        if self.file.exists():
            kept = [line for line in self.file.read_text().splitlines() if _step_of(line) <= resumed_at]
            self.file.write_text("".join(line + "\n" for line in kept))
        self.stream: IO[str] = self.file.open("a", buffering=1)

    def log(self, step: int, numbers: Numbers) -> None:
        self.stream.write(json.dumps({"step": step, **numbers}) + "\n")

    def picture(self, step: int, file: Path) -> None:
        pass  # the picture is in the run folder already

    def close(self) -> None:
        self.stream.close()


def _step_of(line: str) -> float:
    """The step of a log line; a line torn by a crash counts as beyond any checkpoint."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


def read_log(folder: Path) -> list[dict[str, float]]:
    """The lines of a run's `log.jsonl`."""
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


class TensorBoardTracker:
    """Event files in `tensorboard/`."""

    def __init__(self, folder: Path, resumed_at: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        # purge_step hides what a killed run had logged beyond its checkpoint.
        self.writer = SummaryWriter(folder / "tensorboard", purge_step=resumed_at + 1)

    def log(self, step: int, numbers: Numbers) -> None:
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)

    def picture(self, step: int, file: Path) -> None:
        import numpy as np
        from PIL import Image

        pixels = np.asarray(Image.open(file).convert("RGB"))
        self.writer.add_image("samples", pixels, step, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()


class TerminalTracker:
    """A progress bar with the newest numbers on a terminal, plain lines elsewhere."""

    def __init__(self, title: str, total: int, resumed_at: int) -> None:
        self.title, self.total, self.started, self.start_step = title, total, time.monotonic(), resumed_at
        self.console = Console(stderr=True)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task(title, total=total, completed=resumed_at, numbers="")
        self.bar.start()

    def advance(self, step: int) -> None:
        self.bar.update(self.task, completed=step)

    def log(self, step: int, numbers: Numbers) -> None:
        text = " ".join(f"{name} {value:.4g}" for name, value in numbers.items())
        self.bar.update(self.task, completed=step, numbers=text)
        if not self.console.is_terminal:
            rate = (step - self.start_step) / max(1e-9, time.monotonic() - self.started)
            eta = (self.total - step) / max(1e-9, rate)
            print(f"{self.title} {step}/{self.total} {text} eta {eta:.0f}s", file=sys.stderr, flush=True)

    def picture(self, step: int, file: Path) -> None:
        pass

    def close(self) -> None:
        self.bar.stop()
