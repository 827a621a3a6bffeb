"""Images per second and the time left: a bar on a terminal, a line a minute in a log."""

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LINE_EVERY = 60.0  # seconds


class Meter:
    """Counts images as they are written; silent on every process but the first.

    Args:
        total: images in all.
        done: those that are there already; the rate leaves them out.
        share: images in all for each one that this process counts.
    """

    def __init__(self, total: int, done: int, share: int = 1, show: bool = True) -> None:
        self.total, self.first, self.done, self.share, self.show = total, done, done, share, show
        console = Console(stderr=True)
        columns = (TextColumn("sampling"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
        self.bar = Progress(
            *columns, TimeRemainingColumn(), console=console, disable=not (show and console.is_terminal)
        )
        self.task = self.bar.add_task("", total=total, completed=done, rate="")
        self.start = self.last_line = time.monotonic()

    @property
    def rate(self) -> float:
        """Images per second so far, of all processes together."""
        return (self.done - self.first) / max(1e-9, time.monotonic() - self.start)

    def add(self, images: int) -> None:
        self.done = min(self.total, self.done + images * self.share)
        self.bar.update(self.task, completed=self.done, rate=f"{self.rate:.1f} images/s")
        now = time.monotonic()
        if self.show and self.bar.disable and now - self.last_line >= LINE_EVERY:
            self.last_line = now
            left = (self.total - self.done) / max(1e-9, self.rate)
            print(
                f"{self.done:,} of {self.total:,} images, {self.rate:.1f} images/s, {left / 60:.0f} minutes left",
                file=sys.stderr,
                flush=True,
            )

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, t: TracebackType | None) -> None:
        self.bar.stop()
