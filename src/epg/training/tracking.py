"""Where numbers and pictures of a run go: JSONL always, TensorBoard, W&B and Trackio as chosen, and the terminal."""

import contextlib
import json
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, TypeVar

from epg.checkpoint.checkpoint import step_of
from epg.config.settings import RunConfig
from epg.distributed import rank
from epg.errors import OutputError
from epg.progress import Display
from epg.storage.files import replace_text
from epg.storage.plain_file import read_plain
from epg.training.callbacks import Audience, Callback
from epg.training.trackers import Numbers, Tracker, opened, said

T = TypeVar("T")


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
    except (ValueError, KeyError, TypeError, OverflowError):
        return float("inf")


def read_log(folder: Path) -> list[dict[str, float]]:
    """The lines of a run's `log.jsonl`, without one that was torn by a crash or is just being written; none where there
    is no log. What is not a finite number is left out."""
    try:
        lines = read_plain(folder / "log.jsonl").decode(errors="replace").splitlines()
    except OSError:
        return []
    found = [json.loads(line) for line in lines if math.isfinite(_step_of(line))]
    return [{name: x for name, x in line.items() if isinstance(x, int | float) and math.isfinite(x)} for line in found]


class TerminalTracker:
    """The newest numbers on the terminal, losses first; plain lines elsewhere."""

    def __init__(self, config: RunConfig, resumed_at: int) -> None:
        training = config.training
        self.display = Display(config.stage, training.steps, resumed_at, images=training.batch_size)
        self.display.start()

    def advance(self, step: int) -> None:
        self.display.advance(step)

    def log(self, step: int, numbers: Numbers) -> None:
        elsewhere = ("eta_seconds", "images_per_second", "cpu_seconds")
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

    def __init__(
        self,
        trackers: Sequence[Tracker],
        terminal: TerminalTracker | None = None,
        audience: Audience | None = None,
    ) -> None:
        self.trackers, self.terminal, self.audience = trackers, terminal, audience or Audience()
        self.failed: set[str] = set()

    def begin(self, folder: Path, step: int) -> None:
        self.audience.step = step
        self._tell(lambda callback: callback.on_start(folder, step))

    def advance(self, step: int) -> None:
        """Moves the progress bar."""
        terminal = self.terminal
        self.audience.step = step
        self._hear()
        if terminal is not None:
            self._try(terminal, lambda _: terminal.advance(step))

    def log(self, step: int, numbers: Numbers) -> None:
        self._each(lambda tracker: tracker.log(step, numbers))
        self._tell(lambda callback: callback.on_log(step, numbers))

    def evaluated(self, step: int, numbers: Numbers) -> None:
        """Numbers of an evaluation: not for log.jsonl, which has one line for a step; they have files of their own."""
        own = (JSONLTracker, TerminalTracker)
        self._each(lambda tracker: None if isinstance(tracker, own) else tracker.log(step, numbers))
        self._tell(lambda callback: callback.on_evaluation(step, numbers))

    def picture(self, step: int, file: Path) -> None:
        self._each(lambda tracker: tracker.picture(step, file))
        self._tell(lambda callback: callback.on_preview(step, file))

    def close(self) -> None:
        self._each(lambda tracker: tracker.close())
        self._hear()
        self._tell(lambda callback: callback.on_end(self.audience.step))

    def _each(self, action: Callable[[Tracker], None]) -> None:
        for tracker in self.trackers:
            self._try(tracker, action)

    def _hear(self) -> None:
        """Tells of the newest checkpoint that is on disk, once."""
        if folder := self.audience.newest():
            self._tell(lambda callback: callback.on_checkpoint(step_of(folder), folder))

    def _tell(self, action: Callable[[Callback], None]) -> None:
        for callback in self.audience.callbacks:
            self._try(callback, action)

    def _try(self, tracker: T, action: Callable[[T], None]) -> None:
        name = getattr(tracker, "name", type(tracker).__name__)
        try:
            action(tracker)
        except Exception as error:  # libraries, services and disks, each with errors of its own
            if name not in self.failed:
                self.failed.add(name)
                warnings.warn(f"{name}: {said(error)}; training goes on, numbers may be missing", stacklevel=4)


@contextlib.contextmanager
def open_trackers(
    config: RunConfig, folder: Path, resumed_at: int, audience: Audience | None = None
) -> Iterator[Trackers]:
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
    trackers = Trackers(chosen, terminal, audience)
    try:
        for name in dict.fromkeys(config.training.trackers):
            chosen += opened(name, config, folder, resumed_at)
        trackers.begin(folder, resumed_at)
        yield trackers
    finally:
        trackers.close()
