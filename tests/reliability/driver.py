"""Trains on request, each time in fresh processes that a test may kill, stop or signal.

Importing takes seconds, so it is done once: `Driver` talks to one server that forks for every run, one process or as
many as asked for (which find each other as those of torchrun do).
"""

import contextlib
import importlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STEPS = 120


def run_config(stage: Any, steps: int = STEPS, **changes: Any) -> Any:
    """A tiny run that saves every second step and logs each."""
    from epg.config.recipe import merge
    from tests.training.test_loop import tiny

    training = {"steps": steps, "checkpoint_every": 2, "log_every": 1, "trackers": []}
    return tiny(stage, **merge({"training": training}, changes))


# The process that trains ----------------------------------------------------------------------------------------------


def _child(request: dict[str, Any], number: int) -> int:
    """What the command line does with a configuration, for rank `number`: its exit code."""
    from epg import runs
    from epg.config.settings import parse
    from epg.errors import UserError

    if request["processes"] > 1:
        names = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": request["processes"]}
        os.environ.update({name: str(value) for name, value in names.items()})
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=request["port"], GLOO_SOCKET_IFNAME="lo")
    folder = Path(request["folder"])
    log = os.open(f"{folder}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    for name, options in request["sabotage"].items():
        getattr(importlib.import_module("tests.reliability.sabotage"), name)(folder, **options)
    try:
        runs.train(
            parse(request["config"], "request"),
            folder,
            encoder=None if request["encoder"] is None else Path(request["encoder"]),
            resume=None if request["resume"] is None else Path(request["resume"]),
            overrides=request["overrides"],
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    return 0


def _serve() -> None:
    import torch
    import torch.distributed.fsdp
    import torch.utils.tensorboard

    import tests.reliability.sabotage  # noqa: F401
    from epg.runs import train

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        for stage in ("pretraining", "diffusion", "consistency"):  # what is done for the first time takes seconds
            train(run_config(stage, 1), Path(folder) / stage)
    while threading.active_count() > 1:  # nothing may hold a lock while the process is copied
        time.sleep(0.05)
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        pids = []
        for number in range(request["processes"]):
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    code = _child(request, number)
                except BaseException:
                    traceback.print_exc()
                finally:
                    sys.stdout.flush()
                    sys.stderr.flush()
                    os._exit(code)
            pids.append(pid)
        print(json.dumps(pids), flush=True)
        print(json.dumps([os.waitpid(pid, 0)[1] for pid in pids]), flush=True)


# The test's side ------------------------------------------------------------------------------------------------------


@dataclass
class Job:
    """A run under way. `codes` are exit codes, negative where a signal ended the process."""

    driver: "Driver"
    pids: list[int]
    log: Path
    started: float
    codes: list[int]
    seconds: float = 0.0

    def signal(self, number: int, ranks: list[int] | None = None) -> None:
        """Sends a signal to these ranks, or to all."""
        for rank in range(len(self.pids)) if ranks is None else ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pids[rank], number)

    def wait(self) -> list[int]:
        if not self.codes:
            self.codes = [os.waitstatus_to_exitcode(status) for status in json.loads(self.driver.read())]
            self.seconds = time.monotonic() - self.started
        return self.codes

    @property
    def said(self) -> str:
        return self.log.read_text()


class Driver:
    """One server; `start` begins a run, `train` waits for its end as well."""

    def __init__(self) -> None:
        self.server = subprocess.Popen(
            [sys.executable, "-m", "tests.reliability.driver"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            cwd=Path(__file__).parents[2],
        )
        assert self.read() == "ready"

    def start(
        self,
        folder: Path,
        config: Any,
        *,
        processes: int = 1,
        encoder: Path | None = None,
        resume: Path | None = None,
        overrides: Sequence[str] = (),
        **sabotage: dict[str, Any],
    ) -> Job:
        """Begins a run into `folder`. Functions of `sabotage.py` named in `sabotage` are called before, with these
        options, in every process."""
        assert self.server.stdin is not None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        request = {
            "folder": str(folder),
            "config": config.model_dump(mode="json"),
            "processes": processes,
            "port": port,
            "encoder": None if encoder is None else str(encoder),
            "resume": None if resume is None else str(resume),
            "overrides": overrides,
            "sabotage": sabotage,
        }
        folder.parent.mkdir(parents=True, exist_ok=True)
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        return Job(self, json.loads(self.read()), Path(f"{folder}.log"), time.monotonic(), [])

    def train(self, folder: Path, config: Any, *, kill_after: float | None = None, **options: Any) -> Job:
        """Runs to the end, or until it is killed `kill_after` seconds after its start."""
        job = self.start(folder, config, **options)
        if kill_after is not None:
            time.sleep(kill_after)
            job.signal(signal.SIGKILL)
        job.wait()
        return job

    def close(self) -> None:
        assert self.server.stdin is not None
        self.server.stdin.close()
        self.server.wait()

    def read(self) -> str:
        assert self.server.stdout is not None
        return self.server.stdout.readline().strip()


if __name__ == "__main__":
    _serve()
