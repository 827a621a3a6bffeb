"""What a person sees of work that goes on: one display for training, sampling, evaluating and preparing.

On a terminal it is a line with bar, count, rate, time left and the first numbers, as many as the width takes, and the
other numbers below; below the cell of a notebook, the same as text. Elsewhere (a pipe, a file) it is plain lines: the
first ones as they come, then fewer.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from types import TracebackType
from typing import Any, Self

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from epg.cell import Cell, in_notebook

NARROWEST_BAR, WIDEST_BAR = 10, 40
NUMBERS_BESIDE = 3
LINE_WIDTH = 160
CELL_WIDTH = 100
FIRST_LINES = 20  # are written as they come
QUIET_S = 30.0  # between lines where nothing but the count is new
LONGEST_PAUSE_S = 600.0


def is_terminal() -> bool:
    """Whether stderr is a screen on which lines can be redrawn: what a notebook's `!` gives is none, and a colour that
    is forced on a pipe (FORCE_COLOR) makes none of it."""
    notebook = "JPY_PARENT_PID" in os.environ or "inline" in os.environ.get("MPLBACKEND", "")
    return sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and not notebook


class Display:
    """Progress of one thing; silent on every process but the first, which `show` says.

    Args:
        total: steps or images in all; None where it is not known yet.
        done: those that are done already; rate and time left leave them out.
        images: images that each of them stands for; 0 shows no rate, as nothing is counted in images.
    """

    _shown: list["Display"] = []  # noqa: RUF012  the displays on the terminal; only the last is drawn

    def __init__(self, title: str, total: int | None, done: int = 0, images: int = 1, show: bool = True) -> None:
        self.title, self.total, self.done, self.images, self.show = title, total, done, images, show
        self.first, self.started = done, time.monotonic()
        self.numbers: list[tuple[str, str]] = []
        self.told: float | None = None
        self.lines, self.last_line = 0, self.started
        self.live: Live | Cell | None = None

    # What is known --------------------------------------------------------------------------------------------------

    @property
    def rate(self) -> float:
        """Images per second so far."""
        return (self.done - self.first) * self.images / max(1e-9, time.monotonic() - self.started)

    def left(self) -> str:
        """Time that is left at the speed so far, as hours:minutes:seconds."""
        if self.total is None or self.done <= self.first:
            return "-:--:--"
        seconds = (self.total - self.done) * (time.monotonic() - self.started) / (self.done - self.first)
        hours, rest = divmod(round(seconds), 3600)
        return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours < 100 else f"{hours // 24} days"

    def advance(self, done: int, total: int | None = None) -> None:
        """So much is done (of so much)."""
        if self.total is None:
            self.first, self.started = done, time.monotonic()
        self.done, self.total = done, self.total if total is None else total
        self._renew()
        if self._pausing() >= max(QUIET_S, self._pause()):
            self._print_line()

    def tell(self, numbers: Mapping[str, float], rate: float | None = None) -> None:
        """The newest numbers, most important first, and images per second since the last ones."""
        self.told = rate
        self.numbers = [(name, f"{value:.4g}") for name, value in numbers.items()]
        self._renew()
        if self.lines < FIRST_LINES or self._pausing() >= self._pause() or self.done == self.total:
            self._print_line()

    # How it is shown ------------------------------------------------------------------------------------------------

    def parts(self) -> list[str]:
        """Count, rate and time left."""
        rate = self.rate if self.told is None else self.told
        speed = f"{rate:.3g} images/s" if rate < 1000 else f"{rate:.0f} images/s"
        return [f"{self.done}/{self.total or '?'}", *([speed] if self.images else []), f"{self.left()} left"]

    def layout(self, width: int) -> tuple[str, int, str, str]:
        """For a terminal of this width: title, width of the bar, what stands beside it, and the line below."""
        title, beside = self.title, " ".join(self.parts())
        room = width - len(beside) - 2 - NARROWEST_BAR
        title = title if len(title) <= room else title[: max(0, room)]
        room = width - len(title) - len(beside) - 2 - NARROWEST_BAR
        pairs = [f"{name} {value}" for name, value in self.numbers]
        count = 0
        while count < min(NUMBERS_BESIDE, len(pairs)) and len(pairs[count]) + 1 <= room:
            room -= len(pairs[count]) + 1
            count += 1
        beside = " ".join([beside, *pairs[:count]])[:width]
        bar = max(0, min(WIDEST_BAR, width - len(title) - len(beside) - 2))
        return title, bar, beside, fitted(pairs[count:], width)

    def as_text(self) -> str:
        """The same without colours, for a notebook."""
        title, bar, beside, below = self.layout(CELL_WIDTH)
        done = round(bar * self.done / (self.total or max(1, self.done)))
        return f"{title} {'━' * done}{'─' * (bar - done)} {beside}\n{below}".rstrip()

    def _renew(self) -> None:
        if isinstance(self.live, Cell):
            self.live.refresh()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        title, bar, beside, below = self.layout(options.max_width)
        row = Table.grid(padding=(0, 1, 0, 0), pad_edge=False)
        cells: list[Any] = [Text(title)] if title else []
        cells += [ProgressBar(self.total or 1, self.done, bar)] if bar else []
        for _ in range(len(cells) + 1):
            row.add_column(no_wrap=True)
        row.add_row(*cells, Text(beside))
        yield row
        if below:
            yield Text(below, style="dim")

    def _pausing(self) -> float:
        return time.monotonic() - self.last_line

    def _pause(self) -> float:
        """Between lines: so many seconds that a long run writes a few hundred of them."""
        return min(LONGEST_PAUSE_S, (time.monotonic() - self.started) / 100)

    def _print_line(self) -> None:
        if self.live is not None or not self.show:
            return
        self.lines, self.last_line = self.lines + 1, time.monotonic()
        pairs = [*self.parts(), *(f"{name} {value}" for name, value in self.numbers)]
        print(fitted([f"{self.title} {pairs[0]}", *pairs[1:]], LINE_WIDTH), file=sys.stderr, flush=True)

    # On the terminal ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Shows it; a display that is there already rests until this one is closed."""
        if not (self.show and (is_terminal() or in_notebook())):
            return
        if Display._shown:
            Display._shown[-1]._draw(False)
        self._draw(True, inner=bool(Display._shown))
        Display._shown.append(self)

    def close(self) -> None:
        """Leaves the last state on the terminal, or nothing where it was shown within another one."""
        if self not in Display._shown:
            return
        self._draw(False)
        Display._shown.remove(self)
        if Display._shown:
            Display._shown[-1]._draw(True)

    def _draw(self, on: bool, inner: bool = False) -> None:
        if on and in_notebook():
            self.live = Cell(self.as_text)
            self.live.start()
        elif on:
            console = Console(file=sys.stderr, force_terminal=True, force_jupyter=False)
            self.live = Live(self, console=console, refresh_per_second=4, transient=inner)
            self.live.start()
        elif self.live is not None:
            self.live.stop()
            self.live = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, t: TracebackType | None) -> None:
        self.close()


@contextmanager
def reporting(title: str, images: int = 1, show: bool = True) -> Iterator[Callable[[int, int], None]]:
    """A display that appears with the first report of (done, in all); `images` and `show` are `Display`'s."""
    display = Display(title, None, images=images, show=show)

    def report(done: int, total: int) -> None:
        first = display.total is None
        display.advance(done, total)
        if first:
            display.start()

    with closing(display):
        yield report


def fitted(words: list[str], width: int) -> str:
    """As many of these as the width takes, none of them cut."""
    line = ""
    for word in words:
        longer = f"{line} {word}" if line else word
        if len(longer) > width:
            break
        line = longer
    return line
