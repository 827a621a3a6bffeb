"""F3: a dead or hanging process under torchrun ends the job, by name, and the job continues from its checkpoint.

As a script, what torchrun starts: `epg` with one of the faults of `sabotage.act`.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.reliability.chains import state_hash
from tests.reliability.driver import run_config

ROOT = Path(__file__).parents[2]
FAULTS = {  # what rank 1 does; whether the job can notice it only by waiting
    "SIGKILL": False,
    "SIGSEGV": False,
    "exception": False,
    "exit": False,
    "SIGSTOP": True,
    "sleep": True,
    "gil": True,
}
TIMEOUT = 15.0  # training.timeout
DEAD, HANGING = 20.0, TIMEOUT + 45.0  # seconds until the job has gone
STEPS, STEP = 12, 7


@dataclass(frozen=True)
class Outcome:
    """How a job under torchrun ended."""

    code: int
    seconds: float
    """From the fault to the end of the job; of an undisturbed one from its start."""
    said: str
    orphans: list[int]


def torchrun(folder: Path, fault: str = "", restarts: int = 0, timeout: float = TIMEOUT) -> Outcome:
    """Trains with two processes; in step `STEP` rank 1 suffers `fault`, once."""
    config = run_config("diffusion", STEPS, training={"batch_size": 32, "timeout": timeout, "checkpoint_every": 3})
    folder.parent.mkdir(parents=True, exist_ok=True)
    file = folder.with_name(f"{folder.name}.yaml")
    file.write_text(config.to_yaml())
    options = ["--standalone", "--nproc-per-node", "2", "--max-restarts", str(restarts), "-m"]
    command = [sys.executable, "-m", "torch.distributed.run", *options, "tests.reliability.launched"]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "src")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": paths}
    started = time.time()
    log = Path(f"{folder}.log")
    with log.open("w") as stream:
        job = subprocess.Popen(
            [*command, fault or "none", str(folder), str(file)],
            env=environment,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
        job.wait()
    with contextlib.suppress(FileNotFoundError):
        started = float(Path(f"{folder}.acted-1").read_text())
    seconds = time.time() - started
    pids = [int(pid) for pid in Path(f"{folder}.pids").read_text().split()]
    orphans = [pid for pid in pids if alive(pid)]
    for pid in orphans:
        os.kill(pid, signal.SIGKILL)
    return Outcome(job.returncode, seconds, log.read_text(), orphans)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def problem(folder: Path, fault: str, wanted: str) -> tuple[str, float]:
    """One fault, then the same command again; what went wrong, if anything, and the seconds until the job had gone."""
    outcome = torchrun(folder, fault)
    limit = HANGING if FAULTS[fault] else DEAD
    if outcome.code == 0:
        return "ended with 0", outcome.seconds
    if outcome.orphans:
        return f"left {len(outcome.orphans)} processes behind", outcome.seconds
    if outcome.seconds > limit:
        return f"took {outcome.seconds:.0f} s", outcome.seconds
    if not re.search(r"rank *: *1|rank 1|local_rank: 1", outcome.said):
        return f"does not name the rank: {outcome.said[-500:]}", outcome.seconds
    again = torchrun(folder, "")
    if again.code != 0:
        return f"restart ended with {again.code}: {again.said[-500:]}", outcome.seconds
    return ("" if state_hash(folder) == wanted else "ends in another state"), outcome.seconds


def main() -> None:
    import torch

    from epg.cli import entry
    from tests.reliability import sabotage

    fault, folder, file = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    torch.set_num_threads(1)
    with Path(f"{folder}.pids").open("a") as stream:
        stream.write(f"{os.getpid()}\n")
    if fault != "none":
        options: dict[str, Any] = {"what": fault, "moment": "step", "step": STEP, "ranks": (1,)}
        sabotage.act(folder, **options)
    sys.argv = ["epg", "finetune", file, "--from-scratch", "--out", str(folder)]
    raise SystemExit(entry())


if __name__ == "__main__":
    main()
