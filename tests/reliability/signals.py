"""R8: SIGTERM, SIGINT, SIGUSR1, SIGHUP at any moment, to all processes or to one, once or twice."""

import random
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from epg.checkpoint import checkpoint
from tests.reliability.chains import state_hash
from tests.reliability.driver import Driver, Job, run_config

NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
MOMENTS = ("step", "save", "preview", "startup")
QUICK, AT_ONCE = 10.0, 1.0  # seconds to end after the first signal, and after a second one
STEPS = 12


def config(stage: str, steps: int = STEPS) -> Any:
    return run_config(stage, steps, training={"batch_size": 32, "preview_every": 3, "checkpoint_every": 4})


@dataclass
class Figures:
    """What a campaign of signals found."""

    signals: int = 0
    finished: int = 0
    """Runs that were at their end before the signal came."""
    slowest: float = 0.0
    broken: list[str] = field(default_factory=list)


def expected(driver: Driver, folder: Path, stage: str, processes: int) -> str:
    """State of a run that nobody disturbs."""
    job = driver.train(folder, config(stage), processes=processes)
    assert set(job.codes) == {0}, job.said
    return state_hash(folder)


def at_a_moment(
    driver: Driver, folder: Path, stage: str, processes: int, moment: str, number: int, ranks: list[int], wanted: str
) -> str:
    """A signal in the middle of something, then the same command again; what went wrong, if anything."""
    act = {"what": signal.Signals(number).name, "moment": moment, "step": 5, "ranks": ranks}
    job = driver.train(folder, config(stage), processes=processes, act=act)
    if set(job.codes) != {75}:
        return f"{moment}: ended with {job.codes}: {last(job.said)}"
    if moment != "startup":
        # A signal that comes between two steps is answered after the next one.
        saved, asked = checkpoint.find(folder).step, {"step": 6, "save": None, "preview": 7}[moment]
        if asked is not None and saved != asked:
            return f"{moment}: saved step {saved} instead of {asked}"
    return again(driver, folder, stage, processes, wanted)


def at_random(
    driver: Driver,
    folder: Path,
    stage: str,
    processes: int,
    ranks: list[int] | None,
    twice: bool,
    chooser: random.Random,
    duration: float,
    wanted: str,
    figures: Figures,
    busy: float = 1,
) -> str:
    """A signal after a random time, perhaps a second one, then the same command again; what went wrong, if anything.

    `busy`: how much slower than a machine of our own this one may be.

    Before its handlers are there, at the very start, a process ends by the signal itself.
    """
    number = chooser.choice(NUMBERS)
    job = driver.start(folder, config(stage), processes=processes)
    time.sleep(chooser.uniform(0, duration))
    job.signal(number, ranks)
    sent = time.monotonic()
    if twice:
        time.sleep(chooser.uniform(0, 0.05))
        job.signal(number, ranks)
    codes = set(job.wait())
    took = time.monotonic() - sent
    figures.signals += 1
    figures.finished += codes == {0}
    figures.slowest = max(figures.slowest, took)
    if took > busy * (AT_ONCE if twice and ranks is None else QUICK):
        return f"took {took:.1f} s"
    allowed = {0, 75, -number} | ({130, 1, -signal.SIGINT} if twice or number == signal.SIGINT else set())
    if ranks is not None:
        allowed |= {1}  # the others notice that one has gone before it could answer
    if not codes <= allowed:
        return f"{signal.Signals(number).name}: ended with {codes}: {last(job.said)}"
    if (folder / "checkpoints").exists():
        checkpoint.newest(folder / "checkpoints")
    return again(driver, folder, stage, processes, wanted)


def while_held(driver: Driver, folder: Path, moment: str, step: int = 0) -> Job:
    """A run of two processes of which rank 1 is held at a moment, and rank 0 waits for it."""
    act = {"what": "sleep", "moment": moment, "step": step, "ranks": [1]}
    job = driver.start(folder, config("diffusion"), processes=2, act=act)
    while not Path(f"{folder}.acted-1").exists():
        time.sleep(0.02)
    time.sleep(0.5)
    return job


def again(driver: Driver, folder: Path, stage: str, processes: int, wanted: str) -> str:
    job = driver.train(folder, config(stage), processes=processes)
    if set(job.codes) != {0}:
        return f"restart ended with {job.codes}: {last(job.said)}"
    return "" if state_hash(folder) == wanted else "ends in another state"


def last(text: str) -> str:
    return " / ".join(text.splitlines()[-3:])
