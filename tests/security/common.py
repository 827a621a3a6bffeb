"""Command lines for every verb that reads files, and the process that runs them under an audit hook."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

from epg.checkpoint import export, saving
from epg.cli import VERBS
from epg.objectives.diffusion import Diffusion
from epg.training.ema import EMA
from tests.generators import lively_epg, state_of
from tests.helpers import tiny_config

ROOT = Path(__file__).parents[2]
# What each verb does with a path it is given; {path} is it, {good} a real run, {out} a folder that does not exist.
TEMPLATES: dict[str, list[str]] = {
    "quickstart": ["--data {path} --minutes 0.01 --out {out}"],
    "prepare": ["{path} {out} --image-size 8 --workers 1"],
    "inspect": ["{path} --image-size 8 --workers 1 --sheet {out}.png"],
    "pretrain": [
        "digits --data.source {path} --training.steps 1 --out {out} --training.device cpu",
        "{path} --training.steps 1 --out {out}",
        "digits --resume {path} --out {out} --training.device cpu",
    ],
    "finetune": ["digits --encoder {path} --training.steps 1 --out {out} --training.device cpu"],
    "sample": [
        "{path} --out {out} --count 1 --device cpu",
        "{good} --guide {path} --guidance 2 --out {out} --count 1 --device cpu",
    ],
    "evaluate": ["{path} --count 4 --out {out} --device cpu"],
    "sweep": ["{path} --guidance 1 2 --count 4 --out {out} --device cpu"],
    "verify": ["{path}"],
    "ema": ["{path} --sigma-rel 0.1 --out {out}"],
    "info": ["{path}"],
}


def templates_of(verb: str) -> list[str]:
    """Command lines of a verb: those above, or its mandatory options, and again with each option that is a path."""
    if verb in TEMPLATES:
        return TEMPLATES[verb]
    fields = dataclasses.fields(VERBS[verb])
    kinds = get_type_hints(VERBS[verb], include_extras=True)
    positional = [f for f in fields if len(get_args(kinds[f.name])) > 1 and "Positional" in str(kinds[f.name])]
    mandatory = [f for f in fields if f not in positional and f.default is f.default_factory is dataclasses.MISSING]
    base = " ".join(["{path}" for _ in positional] + [f"--{flag(f.name)} {place(f.name)}" for f in mandatory])
    paths = [
        f for f in fields if f not in (*positional, *mandatory) and "Path" in str(kinds[f.name]) and f.name != "out"
    ]
    return [base, *(f"{base} --{flag(f.name)} {{path}}" for f in paths)]


def place(name: str) -> str:
    return "{out}" if name == "out" else "{path}"


def flag(name: str) -> str:
    return name.replace("_", "-")


def make_run(folder: Path) -> Path:
    """A small run with two checkpoints and an export, all real."""
    config = tiny_config(training={"power_ema": [0.1]})
    objective = Diffusion(lively_epg(config), config)
    tensors = {"model": objective.state_dict(), "ema-0.9": EMA(objective.network, [0.9]).state_dict("ema-0.9")}
    for step in (5, 10):
        saving.save(folder / "checkpoints", step, tensors, state_of(config), keep=2)
    export.write(folder / "export", 10, {"ema-0.9": tensors["ema-0.9"]}, state_of(config))
    return folder


def case(verb: str, template: str, path: Path, good: Path, cwd: Path, number: int) -> dict[str, Any]:
    words = [w.format(path=path, good=good, out=cwd / f"out{number}") for w in template.split()]
    return {"arguments": [verb, *words], "cwd": str(cwd)}


def run_audited(cases: Sequence[dict[str, Any]], **environment: str) -> list[dict[str, Any]]:
    """What happened to each command line, see `audited.py`."""
    offline = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-m", "tests.security.audited"],
        input=json.dumps(list(cases)),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **offline, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", **environment},
        timeout=540,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout[done.stdout.rindex("[{") if not done.stdout.startswith("[") else 0 :])
