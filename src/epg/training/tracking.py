"""Where numbers and pictures of a run go: JSONL always, TensorBoard, W&B and Trackio as chosen, and the terminal."""

import contextlib
import importlib.util
import json
import os
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Protocol

from epg.config.settings import RunConfig
from epg.distributed import rank
from epg.errors import OutputError, UserError
from epg.extras import install
from epg.progress import Display
from epg.storage.files import replace_text

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
        if self.file.is_file():
            lines = self.file.read_text().splitlines()
            kept = [line for line in lines if _step_of(line) <= resumed_at]
            if len(kept) < len(lines) or not self.file.read_text().endswith("\n"):
                replace_text(self.file, "".join(line + "\n" for line in kept))
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


class WandbTracker:
    """A run on Weights & Biases; WANDB_MODE=offline keeps it in `wandb/` of the run folder. Resuming continues it."""

    def __init__(self, folder: Path, config: RunConfig) -> None:
        import wandb

        self.image = wandb.Image
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "epg"),
            name=f"{config.recipe} {config.stage}",
            id=tracker_id(folder),
            resume="allow",
            dir=folder,
            config=config.model_dump(mode="json"),
        )
        # With a step of our own, a resumed run may log steps again that the killed one had logged already.
        self.run.define_metric("*", step_metric="step")

    def log(self, step: int, numbers: Numbers) -> None:
        self.run.log({"step": step, **numbers})

    def picture(self, step: int, file: Path) -> None:
        self.run.log({"step": step, "samples": self.image(str(file))})

    def close(self) -> None:
        self.run.finish()


class TrackioTracker:
    """A run in Trackio's local database (`trackio show`); TRACKIO_SPACE_ID or TRACKIO_SERVER_URL send it elsewhere."""

    def __init__(self, folder: Path, config: RunConfig) -> None:
        import trackio

        self.trackio = trackio
        self.run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", "epg"),
            name=f"{config.recipe} {config.stage} {tracker_id(folder)}",
            config=config.model_dump(mode="json"),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, step: int, numbers: Numbers) -> None:
        self.run.log(dict(numbers), step=step)

    def picture(self, step: int, file: Path) -> None:
        self.run.log({"samples": self.trackio.Image(str(file))}, step=step)

    def close(self) -> None:
        self.trackio.finish()


def tracker_id(folder: Path) -> str:
    """What a tracking service knows this run by: drawn once, kept in the run folder."""
    file = folder / "tracker-id"
    if not file.exists():
        file.write_text(uuid.uuid4().hex[:12])
    return file.read_text()


class TerminalTracker:
    """The newest numbers on the terminal, losses first; plain lines elsewhere."""

    def __init__(self, config: RunConfig, resumed_at: int) -> None:
        training = config.training
        self.display = Display(config.stage, training.steps, resumed_at, images=training.batch_size)
        self.display.start()

    def advance(self, step: int) -> None:
        self.display.advance(step)

    def log(self, step: int, numbers: Numbers) -> None:
        elsewhere = ("eta_seconds", "images_per_second")
        shown = {name: value for name, value in numbers.items() if "/" not in name and name not in elsewhere}
        self.display.advance(step)
        self.display.tell(shown, numbers.get("images_per_second"))

    def picture(self, step: int, file: Path) -> None:
        pass

    def close(self) -> None:
        self.display.close()


class Trackers:
    """All trackers of a process (the first one has some, the others none).

    Whatever a tracker fails of costs numbers, not the run: its first failure is a warning.
    """

    def __init__(self, trackers: Sequence[Tracker], terminal: TerminalTracker | None = None) -> None:
        self.trackers, self.terminal = trackers, terminal
        self.failed: set[str] = set()

    def advance(self, step: int) -> None:
        """Moves the progress bar."""
        terminal = self.terminal
        if terminal is not None:
            self._try(terminal, lambda _: terminal.advance(step))

    def log(self, step: int, numbers: Numbers) -> None:
        self._each(lambda tracker: tracker.log(step, numbers))

    def evaluated(self, step: int, numbers: Numbers) -> None:
        """Numbers of an evaluation: not for log.jsonl, which has one line for a step; they have files of their own."""
        own = (JSONLTracker, TerminalTracker)
        self._each(lambda tracker: None if isinstance(tracker, own) else tracker.log(step, numbers))

    def picture(self, step: int, file: Path) -> None:
        self._each(lambda tracker: tracker.picture(step, file))

    def close(self) -> None:
        self._each(lambda tracker: tracker.close())

    def _each(self, action: Callable[[Tracker], None]) -> None:
        for tracker in self.trackers:
            self._try(tracker, action)

    def _try(self, tracker: Tracker, action: Callable[[Tracker], None]) -> None:
        name = type(tracker).__name__
        try:
            action(tracker)
        except Exception as error:  # libraries, services and disks, each with errors of its own
            if name not in self.failed:
                self.failed.add(name)
                warnings.warn(f"{name}: {said(error)}; training goes on, numbers may be missing", stacklevel=4)


def said(error: Exception) -> str:
    """An error of somebody's library in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def require_trackers(config: RunConfig) -> None:
    """Raises UserError if a chosen tracker's library is not installed."""
    for name in config.training.trackers:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:  # without origin it is only a folder of that name, as W&B leaves
            raise UserError(f"--training.trackers {name}: not installed. {install(name)}, or leave it out.")


@contextlib.contextmanager
def open_trackers(config: RunConfig, folder: Path, resumed_at: int) -> Iterator[Trackers]:
    """The trackers of a configuration, on the first process; closed at the end of the `with`."""
    if rank() != 0:
        yield Trackers([])
        return
    try:
        log = JSONLTracker(folder, resumed_at)
    except OSError as error:
        raise OutputError(f"{folder / 'log.jsonl'}: cannot be written ({error.strerror})") from error
    terminal = TerminalTracker(config, resumed_at)
    chosen: list[Tracker] = [log, terminal]
    trackers = Trackers(chosen, terminal)
    try:
        for name in dict.fromkeys(config.training.trackers):
            chosen += opened(name, config, folder, resumed_at)
        yield trackers
    finally:
        trackers.close()


CURES = {"wandb": "Log in with `wandb login`, set WANDB_MODE=offline, or leave it out", "trackio": "Leave it out"}


def opened(name: str, config: RunConfig, folder: Path, resumed_at: int) -> list[Tracker]:
    """A chosen tracker; none, with a warning, where it does not start for a run that is continued.

    Raises UserError where it does not start for a new one.
    """
    makers: dict[str, Callable[[], Tracker]] = {
        "tensorboard": lambda: TensorBoardTracker(folder, resumed_at),
        "wandb": lambda: WandbTracker(folder, config),
        "trackio": lambda: TrackioTracker(folder, config),
    }
    try:
        return [makers[name]()]
    except Exception as error:  # of somebody's library, a service or a disk
        text = f"--training.trackers {name}: could not start ({said(error)})"
        if resumed_at == 0:
            raise UserError(f"{text}. {CURES.get(name, 'Leave it out')}.") from error
        warnings.warn(f"{text}; training goes on without it", stacklevel=2)
        return []
