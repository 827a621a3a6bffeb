"""Trains on request, each time in processes of its own that a test may kill, stop or signal (`tests.started`)."""

import importlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import started

STEPS = 120


def run_config(stage: Any, steps: int = STEPS, **changes: Any) -> Any:
    """A tiny run that saves every second step and logs each."""
    from epg.config.recipe import merge
    from tests.training.test_loop import tiny

    training = {"steps": steps, "checkpoint_every": 2, "log_every": 1, "trackers": []}
    return tiny(stage, **merge({"training": training}, changes))


@dataclass
class Job(started.Program):
    """A run under way."""

    log: Path = Path()

    @property
    def said(self) -> str:
        return self.log.read_text()


class Driver:
    """`start` begins a run, `train` waits for its end as well."""

    def start(
        self,
        folder: Path,
        config: Any,
        *,
        processes: int = 1,
        encoder: Path | None = None,
        resume: Path | None = None,
        overrides: Sequence[str] = (),
        **sabotage: dict[str, Any],
    ) -> Job:
        """Begins a run into `folder`. Functions of `sabotage.py` named in `sabotage` are called before, with these
        options, in every process."""
        request = {
            "folder": str(folder),
            "config": config.model_dump(mode="json"),
            "encoder": None if encoder is None else str(encoder),
            "resume": None if resume is None else str(resume),
            "overrides": overrides,
            "sabotage": sabotage,
        }
        folder.parent.mkdir(parents=True, exist_ok=True)
        log = Path(f"{folder}.log")
        words = ("-m", "tests.reliability.driver", json.dumps(request))
        with log.open("a") as stream:
            program = started.start(*words, stdout=stream, stderr=stream, processes=processes, cwd=started.ROOT)
        return Job(**vars(program), log=log)

    def train(self, folder: Path, config: Any, *, kill_after: float | None = None, **options: Any) -> Job:
        """Runs to the end, or until it is killed `kill_after` seconds after its start."""
        job = self.start(folder, config, **options)
        if kill_after is not None:
            time.sleep(kill_after)
            job.signal(signal.SIGKILL)
        job.wait()
        return job


def main(request: dict[str, Any]) -> int:
    """What the command line does with a configuration: its exit code."""
    from epg import runs
    from epg.config.settings import parse
    from epg.errors import UserError

    folder = Path(request["folder"])
    for name, options in request["sabotage"].items():
        getattr(importlib.import_module("tests.reliability.sabotage"), name)(folder, **options)
    try:
        runs.train(
            parse(request["config"], "request"),
            folder,
            encoder=None if request["encoder"] is None else Path(request["encoder"]),
            resume=None if request["resume"] is None else Path(request["resume"]),
            overrides=request["overrides"],
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    return 0


if __name__ == "__main__":
    code = 1
    try:
        code = main(json.loads(sys.argv[1]))
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # as `epg` does, see epg.cli.entry
