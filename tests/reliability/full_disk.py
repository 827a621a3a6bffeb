"""Saves onto file systems that are too small; run in a mount namespace of its own: `unshare -rm python -m ...`.

Prints one JSON line per case. Usage: full_disk FOLDER CASES
"""

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from epg.checkpoint import checkpoint
from epg.errors import OutputError
from tests.reliability.common import STATE, save, tensors_of, valid

SIZE = 60_000  # numbers per tensor: 240 kB in each of three files
PAGE = 4096


def fill(folder: Path, free: int) -> None:
    """Leaves `free` bytes, whole pages, on the file system of `folder`."""
    room = int(subprocess.check_output(["df", "--output=avail", "-B1", folder], text=True).split()[1])
    with (folder / "ballast").open("wb") as stream:
        stream.write(bytes(max(0, room - free)))


def attempt(folder: Path, free: int, naive: bool) -> dict[str, Any]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], check=True)
    try:
        checkpoints = folder / "checkpoints"
        save(checkpoints, 2, size=SIZE)
        if naive:
            torch.save(tensors_of(2, SIZE), folder / "naive.pt")
        fill(folder, free)
        try:
            if naive:
                torch.save({**tensors_of(4, SIZE), "state": STATE}, folder / "naive.pt")
            else:
                save(checkpoints, 4, size=SIZE)
            message = ""
        except (OutputError, RuntimeError, OSError) as error:
            message = f"{type(error).__name__}: {error}"
        try:
            intact = [2] if torch.load(folder / "naive.pt")["model"]["b"] == 2 else []
        except (RuntimeError, OSError, EOFError, FileNotFoundError):
            intact = []
        left = intact if naive else valid(checkpoints)
        rests = [path.name for path in checkpoints.glob(".*")]
        (folder / "ballast").unlink()
        if not naive and message:
            save(checkpoints, 4, size=SIZE)  # there is space again
        after = [] if naive else valid(checkpoints)
        return {"free": free, "message": message, "left": left, "rests": rests, "after": after}
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def train_until_full(folder: Path) -> dict[str, Any]:
    """Training whose disk is full from step 3 on: checkpoints, log, previews; then the same again with space."""
    from epg.runs import prepare_run
    from tests.training.test_loop import tiny

    config = tiny("diffusion", training={"steps": 8, "checkpoint_every": 2, "preview_every": 4})
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", folder], check=True)
    try:
        run = prepare_run(config, folder / "run")
        run.trainer.writer.first_delay = 0.01
        original, end, message = run.trainer.train_step, 0, ""

        def step(*args: Any) -> Any:
            if run.trainer.step == 3:
                run.trainer.writer.finish()
                fill(folder, 0)
            return original(*args)

        run.trainer.train_step = step  # type: ignore[method-assign]
        try:
            run.trainer.run()
        except OutputError as error:
            end, message = run.trainer.step, str(error)
        left = checkpoint.find(folder / "run").step
        (folder / "ballast").unlink()
        again = prepare_run(config, folder / "run")
        again.trainer.run()
        return {"end": end, "message": message, "left": left, "after": checkpoint.find(folder / "run").step}
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def main() -> None:
    warnings.simplefilter("ignore")
    folder, cases = Path(sys.argv[1]), int(sys.argv[2])
    print(json.dumps(train_until_full(folder)), flush=True)
    total = 3 * 4 * SIZE
    for case in range(cases):
        print(json.dumps(attempt(folder, case * total // cases // PAGE * PAGE, naive=False)), flush=True)
    print(json.dumps({"naive": True, **attempt(folder, total // 2 // PAGE * PAGE, naive=True)}), flush=True)


if __name__ == "__main__":
    main()
