"""`epg bench`: every stage of a recipe, each variant in a process of its own, and one table."""

import itertools
import json
import multiprocessing
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from epg.bench.stage import measure
from epg.config.settings import RunConfig
from epg.config.validation import check
from epg.distributed import processes, rank, world_size
from epg.errors import OutputError, cause
from epg.storage.files import replace_text

Switch = Literal["recipe", "off", "on", "both"]
QUIET = {"checkpoint_every": 10**9, "preview_every": 0, "timeout": 0.0, "trackers": [], "leave_out": []}
COLUMNS = ("stage", "step", "images/s", "MFU", "of measured peak", "memory", "loader", "samples/s", "checkpoint")


def run_bench(
    configs: Sequence[RunConfig], seconds: float, compiled: Switch, own_images: bool, file: Path | None
) -> list[dict[str, Any]]:
    """Measures, prints the table, writes the figures into a JSON file; see `epg.bench.stage.measure`.

    Raises OutputError where the file cannot be written.
    """
    if file is not None:
        refuse_unwritable(file)
    jobs = [variant for config in configs for variant in variants(config, compiled)]
    with processes():
        if len(jobs) == 1 or world_size() > 1:
            results = [measure(job, seconds, own_images) for job in jobs]
        else:  # a process each: peak memory and compiled code must not carry over
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
                results = list(pool.map(measure, jobs, itertools.repeat(seconds), itertools.repeat(own_images)))
        if rank() == 0:
            show(results)
            if file is not None:
                try:
                    replace_text(file, json.dumps(results, indent=1) + "\n")
                except OSError as error:
                    raise OutputError(f"--json {file}: {cause(error)}") from error
    return results


def refuse_unwritable(file: Path) -> None:
    """Raises OutputError where the figures could not be written, before minutes are spent on them."""
    if file.is_dir():
        raise OutputError(f"--json {file}: is a folder; name a file")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, prefix=file.name):
            pass
    except OSError as error:
        raise OutputError(f"--json {file}: {cause(error)}") from error


def variants(config: RunConfig, compiled: Switch) -> list[RunConfig]:
    """The configuration with nothing written beside its steps, compiled or not as it is asked for."""
    own = config.training.compile
    choices = {"recipe": [own], "off": [False], "on": [True], "both": [False, True]}[compiled]
    return [
        check(config.model_copy(update={"training": config.training.model_copy(update={**QUIET, "compile": choice})}))
        for choice in choices
    ]


def show(results: Sequence[dict[str, Any]]) -> None:
    """The table."""
    first = results[0]
    peak = first["peak_flops"]
    title = (
        f"{first['recipe']} on {first['processes']} x {first['device']}, {first['threads']} threads, torch "
        f"{first['torch']}; peak {'not known' if peak is None else f'{peak / 1e12:.0f} TFLOP/s'}, measured "
        f"{first['measured_peak_flops'] / 1e12:.3g}"
    )
    table = Table(*COLUMNS, title=title)
    for r in results:
        switches = [name for name in ("compile", "activation_checkpointing") if r[name]]
        table.add_row(
            " ".join([r["stage"], r["precision"], *switches, f"batch {r['batch_size']}"]),
            f"{1e3 * r['step_seconds']:.1f} ms",
            f"{r['images_per_second']:,.1f}",
            "" if r["mfu"] is None else f"{r['mfu']:.1%}",
            f"{r['measured_mfu']:.1%}",
            f"{r['memory_gib']:.2f} GiB",
            f"{r['loader_images_per_second']:,.0f}/s",
            f"{r['samples_per_second']:,.2f} ({r['nfe']:g} NFE)" if "nfe" in r else "",
            f"{r['checkpoint_seconds']:.2f} s ({1024 * r['checkpoint_gib']:,.0f} MiB)",
        )
    Console(width=150).print(table)  # a narrower terminal would break every cell
