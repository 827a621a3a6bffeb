"""What a program hears of a run that it trains."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path


class Callback:
    """What `epg.train(callbacks=[...])` calls, of one process of several; override what is wanted.

    Numbers and files are what the run keeps itself. It runs between two steps, so that what takes long is waited for.
    What it raises is a warning, and training goes on.
    """

    def on_start(self, folder: Path, step: int) -> None:
        """Training into a run folder begins, or continues after `step` steps."""

    def on_log(self, step: int, numbers: Mapping[str, float]) -> None:
        """A line of the log: losses, rate, images per second, schedules."""

    def on_preview(self, step: int, file: Path) -> None:
        """A picture was drawn: samples of a generator, or what an encoder learns from."""

    def on_checkpoint(self, step: int, folder: Path) -> None:
        """The checkpoint of a step is on disk, in `folder`."""

    def on_evaluation(self, step: int, numbers: Mapping[str, float]) -> None:
        """Metrics of a step, where `evaluation.every` asks for them."""

    def on_end(self, step: int) -> None:
        """Training has ended after `step` steps, or is interrupted; its last checkpoint is on disk."""


class Audience:
    """The callbacks of a run, and what they have heard of.

    Args:
        checkpoint: the newest checkpoint that is on disk, if there is one; asked after every step.
    """

    def __init__(
        self, callbacks: Sequence[Callback] = (), checkpoint: Callable[[], Path | None] = lambda: None
    ) -> None:
        self.callbacks, self._checkpoint = callbacks, checkpoint
        self.step = 0
        self._heard: Path | None = None

    def newest(self) -> Path | None:
        """A checkpoint that has come since the last time."""
        found = self._checkpoint()
        if found == self._heard:
            return None
        self._heard = found
        return found
