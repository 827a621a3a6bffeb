"""Trains on request, each time in a fresh copy of this process that a test may kill.

Importing takes seconds, so it is done once: `Driver` talks to one server that forks for every run.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

STEPS = 120


def naive_save(folder: Path, step: int, tensors: Any, state: Any, keep: int, keep_every: int = 0) -> Path:
    """The control: straight into the final folder, nothing synced, nothing checked."""
    from epg.training import artefact, checkpoint

    final = folder / f"step-{step:08d}"
    final.mkdir(parents=True, exist_ok=True)
    (final / checkpoint.STATE).write_text(json.dumps({"format": 1, "step": step, **state}))
    for name, group in tensors.items():
        file = final / f"{name}.safetensors"
        file.unlink(missing_ok=True)
        artefact.write_tensors(file, group)
    checkpoint.prune(folder, final, keep)
    return final


def naive_newest(folder: Path) -> Any:
    """The control: the newest folder is taken as it is."""
    from epg.training import checkpoint, manifest

    for path in reversed(checkpoint.listing(folder)):
        state = json.loads((path / checkpoint.STATE).read_text())
        entry = manifest.FileEntry(sha256="", size=0)
        files = {file.name: entry for file in path.glob("*.safetensors")}
        return checkpoint.Checkpoint(
            path, state, manifest.Manifest(format=1, files=files, config="", data="", versions={}, threads=1, digest="")
        )
    return None


def run_config(stage: Any, steps: int) -> Any:
    from tests.training.test_loop import tiny

    return tiny(stage, training={"steps": steps, "checkpoint_every": 2, "log_every": 1})


def _child(request: dict[str, Any]) -> None:
    from epg.runs import train
    from epg.training import checkpoint, fsops

    folder, count = Path(request["folder"]), 0

    def hook(operation: fsops.Operation, action: Any) -> Any:
        nonlocal count
        of_weights = operation.kind in ("write", "fsync") and operation.path.suffix == ".safetensors"
        inside = of_weights and folder / "checkpoints" in operation.path.parents  # and not of the export
        count += inside
        if inside and 0 < request["kill_at"] <= count:
            os.kill(os.getpid(), signal.SIGKILL)
        return action()

    fsops.hook = hook
    log = os.open(f"{folder}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if request["naive"]:
        checkpoint.save, checkpoint.newest = naive_save, naive_newest
        checkpoint._is_intact = lambda path: True
    train(run_config(request["stage"], request["steps"]), folder)
    Path(f"{folder}.operations").write_text(str(count))


def _serve() -> None:
    import torch
    import torch.utils.tensorboard

    from epg.runs import open_training_data

    torch.set_num_threads(1)
    open_training_data(run_config("diffusion", 2).data)  # imports what it needs
    print("ready", flush=True)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                _child(json.loads(line))
                code = 0
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", flush=True)
            finally:
                os._exit(code)
        print(pid, flush=True)
        print(os.waitpid(pid, 0)[1], flush=True)


class Driver:
    """One server; `train` starts a run and, if asked, kills it."""

    def __init__(self) -> None:
        self.server = subprocess.Popen(
            [sys.executable, "-m", "tests.reliability.driver"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            cwd=Path(__file__).parents[2],
        )
        assert self._read() == "ready"

    def train(
        self,
        folder: Path,
        stage: str = "diffusion",
        *,
        steps: int = STEPS,
        kill_after: float | None = None,
        kill_at: int | None = None,
        naive: bool = False,
    ) -> tuple[int, float]:
        """Runs to its end, or until it is killed: `kill_after` seconds after its start, or (by itself, as only it can
        know the moment) from write or sync number `kill_at` on, inside a checkpoint.

        Returns the wait status, 0 for a run that ended, and the seconds it took.
        """
        assert self.server.stdin is not None
        request = {"folder": str(folder), "stage": stage, "steps": steps, "naive": naive, "kill_at": kill_at or 0}
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        pid, started = int(self._read()), time.monotonic()
        if kill_after is not None:
            time.sleep(kill_after)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        status = int(self._read())
        return status, time.monotonic() - started

    def close(self) -> None:
        assert self.server.stdin is not None
        self.server.stdin.close()
        self.server.wait()

    def _read(self) -> str:
        assert self.server.stdout is not None
        return self.server.stdout.readline().strip()


def writing(folder: Path, naive: bool = False) -> bool:
    """Whether a checkpoint is half written, or half removed, at this moment."""
    try:
        names = os.listdir(folder / "checkpoints")
    except FileNotFoundError:
        return False
    if not naive:
        return any(name.startswith(".step-") for name in names)
    newest = folder / "checkpoints" / max(names, default="none")
    return newest.is_dir() and len(list(newest.glob("*.safetensors"))) < 3


if __name__ == "__main__":
    _serve()
