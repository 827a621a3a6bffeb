"""Signals that ask a run to stop."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

from epg.distributed import several, world_size
from epg.errors import InterruptedRunError
from epg.signals import name_of, once_answered

ECHO = 5.0  # seconds in which more signals follow a SIGHUP without anybody's asking


def stop_signals() -> list[signal.Signals]:
    """Those that ask for an end: SIGTERM, SIGINT, SIGUSR1 and, of a terminal that goes away, SIGHUP.

    Not a SIGHUP that is ignored: whoever says `nohup` wants the run to outlive the terminal.
    """
    names = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP")  # Windows has the first two
    known = [signal.Signals[name] for name in names if name in signal.Signals.__members__]
    return [n for n in known if n.name != "SIGHUP" or signal.getsignal(n) is not signal.SIG_IGN]


class StopSignals:
    """Stop signals ask the loop to save and stop after the step; a second one acts at once.

    Not where a terminal went away: the kernel says so, the shell once more, and torchrun, told twice, says SIGTERM.

    Args:
        starting: there is nothing to save yet, so a signal raises InterruptedRunError at once. `Trainer.run` ends that.
    """

    def __init__(self, starting: bool = False) -> None:
        self.starting = starting
        self.received = 0
        """Number of the signal that came, 0 for none."""
        self._hung_up = 0.0
        """When the terminal went away."""
        self._previous: dict[signal.Signals, Any] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        hang_up = signal.Signals(number).name == "SIGHUP"
        if not self.received and hang_up:
            self._hung_up = time.monotonic()
        elif self._hung_up and (hang_up or time.monotonic() - self._hung_up < ECHO):
            return
        else:
            for n, handler in self._previous.items():
                signal.signal(n, once_answered(handler))
        if self.received:
            signal.raise_signal(number)
        self.received = number
        if self.starting:
            raise self._before_the_first_step()

    def _before_the_first_step(self) -> InterruptedRunError:
        name = name_of(self.received)
        return InterruptedRunError(
            f"stopped by {name} before the first step; nothing was lost. Run the same command again."
        )

    def _give_back(self) -> None:
        for n, handler in self._previous.items():
            signal.signal(n, once_answered(handler) if self.received else handler)
        self._previous = {}

    @contextlib.contextmanager
    def caught(self) -> Iterator[None]:
        """Handles the signals inside the outermost `with`; outside the main thread Python allows no handlers.

        A process that was told to stop and then loses the others, which were told so too, was interrupted and has not
        failed: it raises InterruptedRunError. At the start it does so whatever follows the signal: an interrupted
        import, for one, ends in any error.
        """
        if self._previous:
            yield
            return
        if threading.current_thread() is threading.main_thread():
            self._previous = {n: signal.signal(n, self._handle) for n in stop_signals()}
        try:
            yield
        except InterruptedRunError:
            raise
        except Exception as error:
            if self.received and self.starting:
                raise self._before_the_first_step() from error
            if not self.received or not isinstance(error, RuntimeError) or not (several() or world_size() > 1):
                raise
            reasons = "; ".join([str(error), *getattr(error, "__notes__", [])])
            raise InterruptedRunError(
                f"stopped by {name_of(self.received)} while other processes ended ({reasons}). "
                "Run the same command again to continue from the newest checkpoint."
            ) from error
        finally:
            self._give_back()
