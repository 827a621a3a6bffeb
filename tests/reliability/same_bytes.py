"""D1: the same command gives the same bytes, whatever the surroundings (`python -m tests.reliability.same_bytes`).

One process trains both stages on a folder of images and prints the hash of both ends; `surroundings` starts it with
another working directory, hash seed, locale, time zone, number of workers, and the images in another order on the disk.
"""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests import started

ROOT = Path(__file__).parents[2]


def images(folder: Path, count: int = 48) -> Path:
    """Small pictures in three classes, with names that sort differently in different locales."""
    import numpy as np
    from PIL import Image

    numbers = np.random.default_rng(0)
    for i in range(count):
        file = folder / f"class {'aBc'[i % 3]}" / f"{'äaAzZ_-1'[i % 8]}{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(numbers.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(file)
    return folder


def copied(source: Path, folder: Path, seed: int) -> Path:
    """The same images, written in another order, so that the directory lists them in another one."""
    files = sorted(file for file in source.rglob("*.png"))
    random.Random(seed).shuffle(files)
    for file in files:
        target = folder / file.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    return folder


def train(data: Path, folder: Path, steps: int, workers: int, broken: bool) -> dict[str, str]:
    """Both stages, on images that worker processes read; the state at the end of each."""
    import torch

    from epg import runs
    from tests.reliability import sabotage
    from tests.reliability.chains import state_hash
    from tests.reliability.driver import run_config

    torch.set_num_threads(1)
    sabotage.uncached(folder)
    if broken:
        sabotage.unsorted_names(folder)
    found = {}
    for stage in ("pretraining", "diffusion"):
        source = {"source": str(data), "workers": workers}
        config = run_config(stage, steps, data=source, training={"checkpoint_every": steps})
        encoder = folder / "pretraining" if stage == "diffusion" else None
        runs.train(config, folder / stage, encoder=encoder)
        found[stage] = state_hash(folder / stage, without=("data.source", "data.workers"))
    return found


def surroundings(folder: Path, data: Path, number: int, steps: int, broken: bool = False) -> dict[str, str]:
    """The ends of training in a fresh process, in surroundings number `number`."""
    workers = (0, 1, 2, 4)[number % 4]
    place = folder / f"place {number}"
    place.mkdir(parents=True)
    copy = copied(data, place / f"images {number}", seed=number)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")]),
        "PYTHONHASHSEED": str(7 * number),
        "LC_ALL": ("C", "C.UTF-8", "POSIX", "en_US.UTF-8")[number % 4],
        "PYTHONUTF8": "1",
        "TZ": ("UTC", "Asia/Tokyo", "America/Lima", "Europe/Paris")[number % 4],
    }
    arguments = [str(copy), str(place / "run"), str(steps), str(workers), str(int(broken))]
    words = ["-m", "tests.reliability.same_bytes", *arguments]
    if broken:  # another order in any interpreter
        done = started.run(*words, cwd=place, environment=environment)
    else:
        command = [sys.executable, *words]
        done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    data, folder, steps, workers, broken = sys.argv[1:]
    print(json.dumps(train(Path(data), Path(folder), int(steps), int(workers), bool(int(broken)))))
