"""Ctrl-C and SIGTERM in every verb: one line and an exit code, and the second one ends the process at once."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

NUMBERS = (signal.SIGINT, signal.SIGTERM)
AGAIN_S = 0.02
received = 0
"""Number of the signal that came, 0 for none. What ends a process after it is the stop, whatever it looks like: an
interrupted import, for one, ends in any error."""


again: threading.Timer | None = None
"""Raises the stop again where its exception was lost."""


def answered() -> int:
    """The signal that came, 0 for none. It is answered now, so it is not raised again, which would end this process in
    another way than with its exit code."""
    if received and again is not None:
        again.cancel()
        signal.signal(received, signal.SIG_DFL)
    return received


def answer_stop_signals() -> None:
    """From now on the first of these signals raises KeyboardInterrupt, which holds its number.

    After it they do what they do to any process, so that a second one ends this one whatever it is about. A signal
    that was ignored stays so (`nohup`, jobs in the background), and a forked child does not answer for its parent.
    """
    global received, again
    received, again, owner = 0, None, os.getpid()
    answered = [n for n in NUMBERS if signal.getsignal(n) is not signal.SIG_IGN]
    others = sys.unraisablehook

    def stop(number: int, frame: FrameType | None) -> None:
        global received
        received = number
        for n in answered:
            signal.signal(n, signal.SIG_DFL)
        if os.getpid() != owner:
            os.kill(os.getpid(), number)
        raise KeyboardInterrupt(number)

    def swallowed(event: Any) -> None:
        """Where the exception fell into a destructor, where nothing can be raised, it is raised again."""
        global again
        if not isinstance(event.exc_value, KeyboardInterrupt) or not received:
            others(event)
            return
        signal.signal(received, stop)
        again = threading.Timer(AGAIN_S, os.kill, (owner, received))
        again.start()

    sys.unraisablehook = swallowed
    for n in answered:
        signal.signal(n, stop)


def once_answered(handler: Any) -> Any:
    """What stands in place of a handler after a first stop signal that somebody else answered: the system's own for
    ours, which would wait until the interpreter comes to it."""
    return signal.SIG_DFL if getattr(handler, "__module__", "") == __name__ else handler


@contextmanager
def stop_signals() -> Iterator[None]:
    """`answer_stop_signals` inside the `with`; outside the main thread Python allows no handlers."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before, hook = {n: signal.getsignal(n) for n in NUMBERS}, sys.unraisablehook
    answer_stop_signals()
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for n, handler in before.items():
            signal.signal(n, handler)


def name_of(number: int) -> str:
    """What to call a signal."""
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
