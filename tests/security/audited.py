"""Runs command lines of `epg` in one process under an audit hook; a process of its own.

Reads a JSON list of cases {"arguments", "cwd"} from standard input and prints a JSON list of what happened: exit code,
output, seconds of CPU time (other processes disturb the clock), peak memory in MB, and every event that a reader of
files has no business to cause.
"""

import contextlib
import io
import json
import os
import resource
import socket
import sys
import time
import traceback
from typing import Any

MARK = "EPG-CANARY"
PROCESSES = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "os.forkpty",
    "os.startfile",
    "subprocess.Popen",
    "pty.spawn",
)
NETWORK = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "urllib.Request")
events: list[str] = []


def hook(event: str, arguments: tuple[Any, ...]) -> None:
    """Records starting processes, talking to anything but this machine, unpickling, and a payload's code."""
    if event in PROCESSES or event == "pickle.find_class" or (event in NETWORK and not is_local(arguments)):
        events.append(f"{event} {arguments!r}"[:300])
    elif event in ("compile", "exec") and MARK in repr(arguments) + repr(getattr(arguments[0], "co_consts", ())):
        events.append(f"{event} of a payload")


def is_local(arguments: tuple[Any, ...]) -> bool:
    if arguments and isinstance(arguments[0], socket.socket) and arguments[0].family == socket.AF_UNIX:
        return True
    address = arguments[1] if arguments and isinstance(arguments[0], socket.socket) else arguments[:1]
    host = address[0] if isinstance(address, tuple) and address else address
    return str(host) in ("127.0.0.1", "::1", "localhost", "None", "") or host == socket.gethostname()


def call(case: dict[str, Any]) -> dict[str, Any]:
    from epg.cli import main

    os.chdir(case["cwd"])
    events.clear()
    output = io.StringIO()
    start = time.process_time()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            code: Any = main(case["arguments"])
        except SystemExit as end:
            code = end.code
        except BaseException:
            code = "traceback"
            traceback.print_exc()
    seconds = time.process_time() - start
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "code": code,
        "output": output.getvalue(),
        "seconds": seconds,
        "memory": memory,
        "events": list(events),
    }


def careless(case: dict[str, Any]) -> dict[str, Any]:
    """The control: what readers do that trust a file."""
    import pickle
    from pathlib import Path

    import numpy as np
    import torch
    import torch.distributed.checkpoint as dcp
    import yaml

    path = Path(case["careless"])
    readers = {
        ".pt": lambda: torch.load(path, weights_only=False),
        ".pth": lambda: torch.load(path, weights_only=False),
        ".pkl": lambda: pickle.loads(path.read_bytes()),
        ".npy": lambda: np.load(path, allow_pickle=True),
        ".npz": lambda: np.load(path, allow_pickle=True)["arr_0"],
        ".yaml": lambda: yaml.unsafe_load(path.read_text()),
        "": lambda: dcp.load({"model": torch.zeros(1)}, checkpoint_id=path),
    }
    events.clear()
    with contextlib.suppress(BaseException):
        readers[path.suffix]()
    return {"events": list(events)}


def phone(case: dict[str, Any]) -> dict[str, Any]:
    """The control: a program that calls home."""
    events.clear()
    with contextlib.suppress(OSError), socket.socket() as line:
        line.settimeout(0.1)
        line.connect((case["phone"], 9))
    return {"events": list(events)}


def main() -> None:
    import torch

    import epg.cli
    import epg.config.recipe
    import epg.sampling  # noqa: F401

    torch.set_num_threads(1)
    if host := os.environ.get("EPG_TEST_HOST"):  # a name that nothing else contains
        socket.gethostname = lambda: host
    sys.addaudithook(hook)
    cases = json.load(sys.stdin)
    found = []
    for case in cases:
        kind = careless if "careless" in case else phone if "phone" in case else call
        found.append(kind(case))
    json.dump(found, sys.__stdout__)


if __name__ == "__main__":
    main()
