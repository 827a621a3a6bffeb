"""R1: chains of runs that are killed and started again with the same command."""

import hashlib
import json
import os
import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from epg.checkpoint import checkpoint
from tests.reliability.driver import STEPS, Driver, run_config


@dataclass
class Figures:
    """What a campaign of kills found."""

    kills: int = 0
    inside_write: int = 0
    chains: int = 0
    broken: list[str] = field(default_factory=list)
    largest_loss: int = 0
    """Steps of the log that the newest checkpoint after a kill did not have."""


def state_hash(folder: Path, without: tuple[str, ...] = ()) -> str:
    """Sha256 over every tensor file and the state of the newest checkpoint, and the loss log with its steps.

    Settings in `without`, such as `data.source`, may differ.
    """
    digest = hashlib.sha256()
    path = checkpoint.listing(folder / "checkpoints")[-1]
    for file in sorted(path.glob("*.safetensors")):
        digest.update(file.name.encode() + hashlib.sha256(file.read_bytes()).digest())
    state = json.loads((path / "state.json").read_text())
    for name in without:
        section, setting = name.split(".")
        del state["config"][section][setting]
    digest.update(json.dumps(state).encode())
    for line in (folder / "log.jsonl").read_text().splitlines():
        numbers = json.loads(line)
        digest.update(f"{numbers['step']} {numbers['loss']!r} {numbers['grad_norm']!r}\n".encode())
    return digest.hexdigest()


def campaign(
    driver: Driver,
    folder: Path,
    stage: str,
    kills: int,
    *,
    seed: int,
    steps: int = STEPS,
    aimed: float = 0.4,
    naive: bool = False,
    kills_per_chain: int = 5,
) -> Figures:
    """Kills `kills` times at uniformly random moments, a part `aimed` of them at random file operations of a save."""
    chooser, figures = random.Random(f"{seed} {stage}"), Figures()
    folder.mkdir(parents=True, exist_ok=True)
    broken: dict[str, Any] = {"naive": {}} if naive else {}
    config = run_config(stage, steps)
    reference = driver.train(folder / "reference", config, kill_inside_a_write={"at": 0}, **broken)
    assert reference.codes == [0], reference.said
    duration = reference.seconds
    expected = state_hash(folder / "reference")
    operations = int((folder / "reference.operations").read_text())
    while figures.kills < kills:
        chain = folder / f"chain-{figures.chains}"
        left = min(kills_per_chain, kills - figures.kills)
        moments = [
            {"kill_inside_a_write": {"at": chooser.randint(1, operations // 2)}}
            if chooser.random() < aimed or (i == 0 and aimed)  # a later one may find the run at its end already
            else {"kill_after": chooser.uniform(0, duration)}
            for i in range(left)
        ]
        problem = _chain(driver, chain, config, figures, moments, broken)
        if not problem and state_hash(chain) != expected:
            problem = "ends in another state"
        if problem:
            figures.broken.append(f"{chain.name}: {problem}")
        figures.chains += 1
        shutil.rmtree(chain)
    return figures


def _chain(
    driver: Driver,
    chain: Path,
    config: Any,
    figures: Figures,
    moments: list[dict[str, Any]],
    broken: dict[str, Any],
) -> str:
    """Runs until the end, killed at these moments on the way; what went wrong, if anything."""
    for moment in [*moments, {}]:
        job = driver.train(chain, config, **moment, **broken)
        if job.codes == [0]:
            return ""
        if job.codes != [-9]:
            return f"restart failed: {job.said.splitlines()[-1]}"
        figures.kills += 1
        figures.inside_write += writing(chain, bool(broken))
        if not broken:
            figures.largest_loss = max(figures.largest_loss, _lost(chain))
    raise AssertionError("a run that nobody killed was killed")


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


def _lost(chain: Path) -> int:
    try:
        lines = (chain / "log.jsonl").read_text().splitlines()
        logged = max((int(json.loads(line)["step"]) for line in lines if line.endswith("}")), default=0)
    except FileNotFoundError:
        return 0
    found = checkpoint.newest(chain / "checkpoints")
    return logged - (found.step if found else 0)
