"""When, where and by which command something came about: for receipts, references and the record of a run's starts."""

import os
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from epg.command_line import without_home
from epg.distributed import world_size


def environment() -> dict[str, Any]:
    """Versions and machine, without names of people, hosts or folders."""
    packages = {}
    for name in ("epg", "torch", "numpy", "torch-fidelity", "transformers", "safetensors"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "packages": packages,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "cores": os.cpu_count(),
        "processes": world_size(),
        "threads": torch.get_num_threads(),
    }


def circumstances() -> dict[str, Any]:
    """Environment, command (as a shell reads it) and time."""
    return {"environment": environment(), "command": command(), "time": now()}


def command() -> str:
    """What this process was started with; its launcher, if it has one, does not tell."""
    program = Path(sys.argv[0]).name
    spec = sys.modules["__main__"].__spec__
    module = program == "__main__.py" and spec is not None and spec.parent
    return without_home([*(["python", "-m", module] if module else [program]), *sys.argv[1:]])


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
