"""F5: nothing grows over a run of many steps, saves, previews and resumes."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.reliability.driver import Driver, run_config

WARM_UP = 0.4  # part of each process's steps that is left out
SLOPE = 1e6  # bytes per 1,000 steps


@dataclass(frozen=True)
class Usage:
    """What a run used."""

    slope: float
    """Growth of resident memory, main process and workers, in bytes per 1,000 steps within a process."""
    files: int
    threads: int
    """Largest difference of open files and of threads within a process, after its warm-up."""
    checkpoints: int
    """Most folders beside each other."""
    log: float
    """Bytes per step."""

    @property
    def fine(self) -> bool:
        """A write under way has a folder and a thread of its own, and some files open."""
        return (
            self.slope <= SLOPE and self.files <= 4 and self.threads <= 1 and self.checkpoints <= 3 and self.log <= 1000
        )


def measure(driver: Driver, folder: Path, steps: int, resumes: int, **sabotage: dict[str, str]) -> Usage:
    """Trains with a worker process, ten saves and one preview per resume, and looks every 20 steps."""
    part = steps // resumes
    for i in range(resumes):
        config = run_config(
            "diffusion",
            steps,
            data={"workers": 1},
            training={"checkpoint_every": max(1, part // 10), "preview_every": part, "log_every": 1},
        )
        options = {"watch": {"every": 20}, "uncached": {}, **sabotage}
        if i < resumes - 1:
            options["act"] = {"what": "SIGTERM", "moment": "boundary", "step": (i + 1) * part}
        Path(f"{folder}.acted-0").unlink(missing_ok=True)
        job = driver.train(folder, config, **options)
        assert job.codes == [75 if i < resumes - 1 else 0], job.said[-2000:]
    rows = np.array([json.loads(line) for line in Path(f"{folder}.usage").read_text().splitlines()])
    slopes, files, threads = [], [], []
    for pid in dict.fromkeys(rows[:, 1]):
        own = rows[rows[:, 1] == pid]
        own = own[int(WARM_UP * len(own)) :]
        # Medians of the first and the last third: a preview at the very end loads a library once, which is no leak.
        third = max(1, len(own) // 3)
        (begin, less), (end, more) = (np.median(part[:, [0, 2]], axis=0) for part in (own[:third], own[-third:]))
        slopes.append((more - less) / max(1, end - begin))
        files.append(np.ptp(own[:, 3]))
        threads.append(np.ptp(own[:, 4]))
    log = (folder / "log.jsonl").stat().st_size / steps
    return Usage(1000 * float(np.mean(slopes)), int(max(files)), int(max(threads)), int(max(rows[:, 5])), log)
