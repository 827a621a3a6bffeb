"""Programs that a test starts: processes of their own, with own arguments, folder, streams, signals and exit codes.

`run` and `start` stand for `subprocess.run` and `Popen` of `python -m MODULE ...` and `python -c CODE ...`. Importing
torch takes two seconds, so it is done once: a server forks for every program, which then runs as if started anew.
What is about starting itself (imports, hash seeds, launchers, signals in the first second) needs a new interpreter.
"""

import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

ROOT = Path(__file__).parents[1]
HEADER = 8  # bytes that hold the length of a request


# The test's side ------------------------------------------------------------------------------------------------------


@dataclass
class Program:
    """One program under way, in as many processes as asked for."""

    pids: list[int]
    answers: TextIO
    started: float
    codes: list[int] = field(default_factory=list)
    """Exit codes once it has ended, negative where a signal ended the process."""
    seconds: float = 0.0

    def signal(self, number: int, ranks: list[int] | None = None) -> None:
        """Sends a signal to these processes, or to all."""
        for rank in range(len(self.pids)) if ranks is None else ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pids[rank], number)

    @property
    def running(self) -> bool:
        return not self.codes and not select.select([self.answers], [], [], 0)[0]

    def wait(self) -> list[int]:
        if not self.codes:
            with self.answers:
                try:
                    self.codes = [os.waitstatus_to_exitcode(status) for status in json.loads(self.answers.readline())]
                except BaseException:  # pytest's timeout
                    self.signal(signal.SIGKILL)
                    raise
            self.seconds = time.monotonic() - self.started
        return self.codes


def start(
    *words: str | Path,
    stdout: TextIO,
    stderr: TextIO,
    processes: int = 1,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Program:
    """Begins `python WORDS`; its output goes to these files. Several processes find each other as those of
    torchrun do."""
    request = {
        "words": [str(word) for word in words],
        "cwd": str(cwd or Path.cwd()),
        "environment": dict(os.environ if environment is None else environment),
        "processes": processes,
        "port": free_port(),
    }
    content = json.dumps(request).encode()
    answers, theirs = os.pipe()
    try:
        socket.send_fds(server(), [f"{len(content):{HEADER}d}".encode()], [stdout.fileno(), stderr.fileno(), theirs])
        server().sendall(content)
    finally:
        os.close(theirs)
    stream = os.fdopen(answers)
    return Program(json.loads(stream.readline()), stream, time.monotonic())


def run(
    *words: str | Path, processes: int = 1, cwd: Path | None = None, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`python WORDS` to its end, and what it printed. The exit code is the first one that is not 0."""
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        options: dict[str, Any] = {"processes": processes, "cwd": cwd, "environment": environment}
        codes = start(*words, stdout=stdout, stderr=stderr, **options).wait()
        for stream in (stdout, stderr):
            stream.seek(0)
        code = next((code for code in codes if code), 0)
        return subprocess.CompletedProcess(words, code, stdout.read(), stderr.read())


def epg(*words: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """`epg WORDS` in a process of its own."""
    return run("-m", "epg.cli", *words, **options)


def call(function: Callable[..., object], *arguments: object, processes: int = 1) -> None:
    """A function of a test module in processes of its own, with arguments that are JSON; a failure is the test's."""
    code = (
        f"import json, os, sys; from {function.__module__} import {function.__name__} as function\n"
        "function(*json.loads(sys.argv[1]))\n"
        "os._exit(0)  # as `epg` does, see epg.cli.entry"
    )
    done = run("-c", code, json.dumps(arguments, default=str), processes=processes, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@functools.cache
def server() -> socket.socket:
    """The connection to this test session's server, which ends with it."""
    ours, theirs = socket.socketpair()
    subprocess.Popen(
        [sys.executable, "-m", "tests.started", str(theirs.fileno())],
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        start_new_session=True,
    )
    theirs.close()
    return ours


# The server's side ----------------------------------------------------------------------------------------------------


IMPORTED = [  # what programs import, and what torch and others import where they are first used
    *("pytest", "torch._dynamo", "torch._inductor.compile_fx", "torch.distributed.fsdp"),
    *("torch.utils.tensorboard", "epg.cli.verbs", "epg.runs"),
]


def import_everything() -> None:
    for name in IMPORTED:
        importlib.import_module(name)
    torch = importlib.import_module("torch")
    torch.set_num_threads(1)
    while threading.active_count() > 1:  # nothing may hold a lock while the process is copied
        time.sleep(0.05)
    gc.freeze()  # what is not touched is not copied


def serve(control: socket.socket) -> tuple[dict[str, Any], int] | None:
    """Answers requests; returns in each process that a request asked for, with its number, and at the end."""
    while True:
        header, streams, *_ = socket.recv_fds(control, HEADER, 3)
        if not header:
            return None
        content = b""
        while len(content) < int(header):
            content += control.recv(int(header) - len(content))
        if os.fork() == 0:
            control.close()
            return watch(json.loads(content), streams)
        for stream in streams:
            os.close(stream)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def watch(request: dict[str, Any], streams: list[int]) -> tuple[dict[str, Any], int]:
    """Returns in each of the processes; the one that started them tells how they ended, and ends."""
    *outputs, answers = streams
    pids: list[int] = []
    for number in range(request["processes"]):
        pids.append(os.fork())
        if pids[-1] == 0:
            os.close(answers)
            for place, stream in enumerate(outputs, 1):
                os.dup2(stream, place)
                os.close(stream)
            return request, number
    for stream in outputs:
        os.close(stream)
    with os.fdopen(answers, "w") as stream:
        print(json.dumps(pids), file=stream, flush=True)
        print(json.dumps([os.waitpid(pid, 0)[1] for pid in pids]), file=stream, flush=True)
    os._exit(0)


def become(request: dict[str, Any], number: int) -> None:
    """Does what `python WORDS` does."""
    torch = importlib.import_module("torch")
    torch.set_num_threads(1)  # a pool of threads does not outlive a fork; two threads that made the new one would race
    sys.stdout = sys.__stdout__ = open(1, "w", 1 if os.isatty(1) else -1, closefd=False)  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(2, "w", 1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    if request["processes"] > 1:
        names = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": request["processes"]}
        os.environ.update({name: str(value) for name, value in names.items()})
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=request["port"], GLOO_SOCKET_IFNAME="lo")
    option, program, *arguments = request["words"]
    sys.argv = [option, *arguments]
    if option == "-c":
        sys.path[0] = ""
        module = types.ModuleType("__main__")
        sys.modules["__main__"] = module
        exec(compile(program, "<string>", "exec"), module.__dict__)
    else:
        sys.path[0] = request["cwd"]
        runpy.run_module(program, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    import_everything()
    if (mine := serve(socket.socket(fileno=int(sys.argv[1])))) is not None:
        become(*mine)
