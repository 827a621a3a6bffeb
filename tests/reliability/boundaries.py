"""R5: stopped and continued at every kind of boundary, twice in a row, a run ends as if nothing had been."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from epg.checkpoint import checkpoint
from tests.reliability.chains import state_hash
from tests.reliability.driver import Driver, run_config

# 40 images in batches of 32, as two micro-batches where that is exact: epochs end inside steps 1, 2, 3 and after
# step 5; the curriculum of both stages changes after steps 4 and 8 (and others); previews every 5 steps.
STEPS = 12
BOUNDARIES = {
    "first step": ("boundary", 0),
    "between two micro-batches": ("micro", 2),
    "epoch ends inside the step": ("boundary", 1),
    "epoch ends with the step": ("boundary", 4),
    "first step of an epoch": ("boundary", 5),
    "middle of a later epoch": ("boundary", 6),
    "curriculum changes": ("boundary", 3),
    "after the change": ("boundary", 4),
    "during a preview": ("preview", 5),
    "during a write": ("save", 0),
    "last step but one": ("boundary", STEPS - 2),
    "last step": ("boundary", STEPS - 1),
}


def config(stage: str) -> Any:
    objectives: dict[str, dict[str, Any]] = {"consistency": {"d": 4}, "pretraining": {"s0": 2, "s1": 8}}
    return run_config(
        stage,
        STEPS,
        data={"per_class": 4, "workers": 2},
        objective=objectives.get(stage, {}),
        training={
            "batch_size": 32,
            "micro_batch": 32 if stage == "pretraining" else 16,
            "checkpoint_every": 5,
            "preview_every": 5,
            "power_ema": [0.1],
        },
    )


def cases(stage: str) -> Iterator[tuple[str, str, int, str]]:
    """(name, moment, step, what happens) of every boundary: a stop that saves and, of the same moment, a crash."""
    for name, (moment, step) in BOUNDARIES.items():
        if moment == "micro" and stage == "pretraining":
            continue
        if moment != "micro":
            yield f"{name}, stopped", moment, step, "SIGTERM"
        yield f"{name}, crashed", moment, step, "crash"


def interrupted(
    driver: Driver, folder: Path, stage: str, moment: str, step: int, what: str, wanted: str, **options: Any
) -> str:
    """Interrupted there, once more as soon as it has continued for a step, then left alone; what went wrong, if
    anything."""
    ends = {"SIGTERM": 75, "crash": 9}
    job = driver.train(folder, config(stage), act={"what": what, "moment": moment, "step": step}, **options)
    if job.codes != [ends[what]] and not (job.codes == [0] and step == STEPS - 1):  # a stop at the end is the end
        return f"ended with {job.codes}: {job.said[-300:]}"
    found = checkpoint.newest(folder / "checkpoints") if (folder / "checkpoints").exists() else None
    Path(f"{folder}.acted-0").unlink(missing_ok=True)
    second = {"what": "SIGTERM", "moment": "boundary", "step": 0 if found is None else found.step}
    job = driver.train(folder, config(stage), act=second, **options)
    if job.codes not in ([75], [0]):
        return f"continued, ended with {job.codes}: {job.said[-300:]}"
    job = driver.train(folder, config(stage), **options)
    if job.codes != [0]:
        return f"continued twice, ended with {job.codes}: {job.said[-300:]}"
    steps = [json.loads(line)["step"] for line in (folder / "log.jsonl").read_text().splitlines()]
    if steps != list(range(1, STEPS + 1)):
        return f"the log has the steps {steps}"
    return "" if state_hash(folder) == wanted else "ends in another state"


def undisturbed(driver: Driver, folder: Path, stage: str, **options: Any) -> str:
    """State of a run that nobody interrupts."""
    job = driver.train(folder, config(stage), **options)
    assert job.codes == [0], job.said
    return state_hash(folder)
