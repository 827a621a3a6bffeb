"""What ends a process that hangs."""

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator

from epg.distributed import rank
from epg.messages import say

STUCK_EXIT_CODE = 71


class Watchdog:
    """Ends a process that completed no step for `timeout` seconds, after saying where each of its threads is.

    A collective that waits for a dead or stopped process would otherwise hang for ever.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout, self.step = timeout, 0
        self._beat = time.monotonic()
        self._done = threading.Event()

    def beat(self, step: int) -> None:
        """Called after every step, and after whatever else takes long."""
        self.step, self._beat = step, time.monotonic()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Watches inside the `with`."""
        self.beat(self.step)
        thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        if self.timeout > 0:
            thread.start()
        try:
            yield
        finally:
            self._done.set()

    def _watch(self) -> None:
        pause = min(1.0, self.timeout / 4)
        looked = time.monotonic()
        while not self._done.wait(pause):
            asleep = time.monotonic() - looked - pause
            looked += pause + asleep
            if asleep > pause:  # the process was stopped as a whole (Ctrl-Z), which is no hang
                self._beat += asleep
            silent = time.monotonic() - self._beat
            if silent > self.timeout:
                say(
                    f"watchdog: rank {rank()} completed no step for {silent:.0f} s after step {self.step}; this or "
                    f"another process hangs. --training.timeout sets the limit. Threads:"
                )
                faulthandler.dump_traceback(file=sys.stderr)
                os._exit(STUCK_EXIT_CODE)
