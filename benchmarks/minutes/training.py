"""Training by the clock for `ten_minutes.py`: the steps are planned from the measured time of one."""

import contextlib
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from epg.bench.steps import time_steps
from epg.checkpoint.loading import read_trained
from epg.config.objectives import Stage
from epg.config.settings import RunConfig
from epg.cost.training import training_flops
from epg.errors import InterruptedRunError
from epg.evaluation.linear import PREFIX
from epg.runs import prepare_run
from epg.training.loop import Trainer
from epg.training.throughput import peak_flops
from epg.training.tracking import read_log
from minutes.study import Study

WARM, TIMED = 12, 20  # steps before timing, compiling included, and timed ones
MARGIN = 0.97  # of the time that is planned with: the rate is measured, the end is not


@contextlib.contextmanager
def compiling_anew() -> Iterator[None]:
    """Inside, nothing is taken from a cache of compiled kernels: compiling is part of the time."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        yield


def step_seconds(study: Study, config: RunConfig, encoder: Path | None) -> tuple[float, float]:
    """Seconds of preparing a run, and of a step of the loop as it is, measured after everything is compiled."""
    begun = study.elapsed
    with tempfile.TemporaryDirectory() as folder:
        trainer = prepare_run(config, Path(folder), encoder=encoder, dataset=study.train).trainer
        preparing = study.elapsed - begun
        return preparing, time_steps(trainer, warm_up=WARM, fewest=TIMED)


def train_for(study: Study, stage: Stage, seconds: float, folder: Path, encoder: Path | None) -> dict[str, Any]:
    """Trains a stage into a run folder for this time, calibration included. Returns what it did."""
    begun = study.elapsed
    preparing, each = step_seconds(study, study.config(stage), encoder)
    deadline = begun + seconds
    steps = max(20, int(MARGIN * (deadline - study.elapsed - preparing) / each))
    config = study.config(stage, steps)
    trainer = prepare_run(config, folder, encoder=encoder, dataset=study.train).trainer

    def step(batches: Any) -> Any:
        if trainer.step % 10 == 9 and study.elapsed > deadline:
            trainer.signals.received = signal.SIGTERM
        return Trainer.train_step(trainer, batches)

    trainer.train_step = step  # type: ignore[method-assign]
    with contextlib.suppress(InterruptedRunError):
        trainer.run()
    log = read_log(folder)
    flops = training_flops(trainer.config)
    rate = config.training.batch_size / each
    return {
        "stage": stage,
        "seconds": study.elapsed - begun,
        "planned_steps": steps,
        "steps": trainer.step,
        "batch_size": config.training.batch_size,
        "images": trainer.step * config.training.batch_size,
        "step_seconds": each,
        "images_per_second": rate,
        "mfu": rate * flops / peak_flops(study.device, config.training.precision),
        "loss": log[-1]["loss"] if log else None,
        "linear": judgements(folder),
    }


def recorded(run: Path) -> dict[str, Any]:
    """What a run of the command line did."""
    trained = read_trained(run)
    return {
        "stage": trained.config.stage,
        "steps": trained.step,
        "batch_size": trained.config.training.batch_size,
        "linear": judgements(run),
    }


def judgements(run: Path) -> list[dict[str, float]]:
    """Errors relative to the best linear denoiser's in the log of a run, by noise level."""
    lines = [line for line in read_log(run) if f"{PREFIX}mean" in line]
    return [
        {"step": line["step"], **{k.removeprefix(PREFIX): v for k, v in line.items() if k.startswith(PREFIX)}}
        for line in lines
    ]
