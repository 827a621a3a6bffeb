"""What is redrawn below the cell of a notebook, as a line is on a terminal."""

import sys
import time
from collections.abc import Callable
from typing import Any

PAUSE_S = 0.5


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook: not a program that one starts with `!`."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"


class Cell:
    """A text in the output of the cell that runs, renewed twice a second at most."""

    def __init__(self, text: Callable[[], str]) -> None:
        self.text, self.drawn = text, 0.0
        self.handle: Any = None

    def start(self) -> None:
        from IPython.display import display

        self.handle = display(self._content(), raw=True, display_id=True)

    def refresh(self) -> None:
        if time.monotonic() - self.drawn > PAUSE_S:
            self._update()

    def stop(self) -> None:
        self._update()

    def _update(self) -> None:
        if self.handle is not None:
            self.drawn = time.monotonic()
            self.handle.update(self._content(), raw=True)

    def _content(self) -> dict[str, str]:
        return {"text/plain": self.text()}
