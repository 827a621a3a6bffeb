"""The command line: `epg VERB ...`.

This module holds what stands around every verb, and imports nothing heavy: a stop signal is answered in one line from
the first moment on, and `epg --help` is fast.
"""

import io
import os
import select
import sys
from collections.abc import Sequence
from typing import Any, TextIO

from epg import messages, signals
from epg.errors import InterruptedRunError, OutputError, UserError, cause

__all__ = ["VERBS", "configure", "entry", "main", "parse"]

OUTPUT_GONE = 141  # 128 + SIGPIPE, as a shell says of a program whose reader has ended


def __getattr__(name: str) -> Any:
    """`VERBS`, `configure` and `parse`, imported when they are first asked for."""
    if name == "configure":
        from epg.cli.train import configure

        return configure
    if name in __all__:
        from epg.cli import verbs

        return getattr(verbs, name)
    raise AttributeError(f"module 'epg.cli' has no attribute {name!r}")


def entry() -> int:
    """`main` for a process of its own. One of several ends at once, after everything is closed and written: threads of
    the process group that outlive the interpreter's shutdown would otherwise abort a run that succeeded."""
    signals.answer_stop_signals()
    wait_politely()
    code = perform(sys.argv[1:])
    from epg.cli.process import of_several

    if of_several():
        os._exit(code)
    return code


def wait_politely() -> None:
    """Threads of torch's OpenMP (libgomp) that wait for their part of the next operation give their core away after
    some 40 microseconds, unless the user has said how they wait. By default they hold it for milliseconds, and where
    something else needs it too, two threads are slower than one (`benchmarks/NOTES.md`). Read when torch is imported.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")


def main(arguments: Sequence[str] | None = None) -> int:
    """What `epg ARGUMENTS` does, from Python; returns the exit code."""
    with signals.stop_signals():
        return perform(list(sys.argv[1:] if arguments is None else arguments))


def perform(arguments: list[str]) -> int:
    """Does what a command line says. What a user can put right, or has asked for, ends in one line and its code."""
    try:
        from epg.cli.process import plain_output, settle

        settle()
        with plain_output():
            from epg.cli.verbs import run

            run(arguments)
            flush()
    except InterruptedRunError as error:
        return say(str(error), error.exit_code)
    except (Exception, KeyboardInterrupt) as error:
        if number := signals.answered():
            return say(f"stopped by {signals.name_of(number)}", 128 + number)
        if isinstance(error, UserError):
            return say(str(error), error.exit_code)
        if not isinstance(error, OSError):
            raise
        gone = output_is_gone()
        if isinstance(error, BrokenPipeError) and gone:
            return OUTPUT_GONE
        place = error.filename or ("the output" if gone else "the system")
        return say(f"{place}: {cause(error)}", OutputError.exit_code)
    except SystemExit:  # of the parser, which has printed help or what is wrong
        if output_is_gone():
            return OUTPUT_GONE
        raise
    return 0


def say(text: str, code: int) -> int:
    """The last word, on stderr; returns the code. It must not fail: the terminal may be gone, or its disk full."""
    try:
        flush()
        messages.say(f"error: {text}")
    except (OSError, ValueError):
        silence()
    return code


def flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()


def output_is_gone() -> bool:
    """Whether nothing can be written any more, as in `epg info | head`; then the rest of the output goes nowhere."""
    try:
        flush()
        gone = any(reader_is_gone(stream) for stream in (sys.stdout, sys.stderr) if stream is not None)
    except OSError:
        gone = True
    if gone:
        silence()
    return gone


def reader_is_gone(stream: TextIO) -> bool:
    """Whether this is a pipe that nobody reads any more: a failed write leaves nothing behind that would fail again."""
    if not hasattr(select, "poll"):  # Windows
        return False
    poll = select.poll()
    try:
        poll.register(stream.fileno(), select.POLLOUT)
    except io.UnsupportedOperation:  # a notebook's, or text in memory
        return False
    return any(event & select.POLLERR for _, event in poll.poll(0))


def silence() -> None:
    """Sends the rest of the output nowhere, so that the interpreter's last flush does not fail again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            try:
                stream.flush()
            except OSError:
                os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
