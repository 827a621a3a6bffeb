"""The sections of words: which runs these are, what receipts say, settings, commands, and what is not there yet."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from epg.analysis.compare import compare
from epg.analysis.compare_report import label, text, warnings
from epg.checkpoint import checkpoint, handover
from epg.command_line import written
from epg.drawing import jumping
from epg.errors import ArtefactError
from epg.report.parts import Cell, Missing, Section, Table, table
from epg.report.run_files import RunFiles
from epg.storage.artefact import read_json

FEW = 12  # rows of a table that is there at once

Runs = Sequence[RunFiles]


def facts(run: RunFiles, runs: Runs) -> list[tuple[str, str]]:
    """What one wants to know first."""
    config, last = run.config, run.log[-1] if run.log else {}
    data = config.data
    found = [
        ("stage", f"{config.stage}, {beginning(run, runs)}"),
        ("state", run.state),
        ("images", f"{data.source}, {data.image_size}x{data.image_size}"),
        ("recipe", config.recipe),
    ]
    if run.running and "eta_seconds" in last:
        found.append(("time left", f"about {span(last['eta_seconds'])}"))
    if "loss" in last:
        found.append(("loss", f"{last['loss']:.4g}"))
    if run.receipt is not None:
        number = next(iter(run.receipt.metrics.values()))
        found.append((number.name, f"{text(number)} of {run.receipt.samples.get('count', '?')} samples"))
    if "images_per_second" in last:
        found.append(("speed", f"{last['images_per_second']:,.0f} images/s"))
    for name in ("skipped", "spikes", "damaged"):
        if last.get(name):
            found.append((name, f"{last[name]:.0f}"))
    return found


def beginning(run: RunFiles, runs: Runs) -> str:
    """What a run began with; by its name if it is on the page."""
    try:
        content = read_json(run.folder / handover.FILE)[0]
    except ArtefactError:
        return "from random weights"
    if generator := mapping(content.get(handover.GENERATOR)):
        return f"from the generator {place(str(generator.get('source')), runs)}"
    return f"from the encoder {place(str(content.get('source')), runs)}"


def place(source: str, runs: Runs) -> str:
    """A checkpoint as people say it: run and step."""
    path = Path(source)
    if checkpoint.step_of(path) < 0:
        return source
    folder = path.parent.parent
    name = next((run.name for run in runs if run.folder.resolve() == folder.resolve()), str(folder))
    return f"{name}, step {checkpoint.step_of(path):,}"


def span(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def receipts(runs: Runs) -> Section:
    section = Section("Judged", "Bold: the best, and what is less than two standard errors behind it.")
    found = {run.name: run.receipt for run in runs if run.receipt is not None}
    if not found:
        return section
    compared = compare(found)
    rows = [
        [Cell(label(cells)), *(Cell(text(cell.number), cell.best) for cell in cells)]
        for cells in compared.metrics.values()
    ]
    section.tables.append(Table(["", *compared.names], rows, "Metrics"))
    section.warnings = warnings(compared)
    section.notes = list(dict.fromkeys(note for r in found.values() for note in r.warnings))
    if compared.differences:
        differing = [[d.name, *d.values] for d in compared.differences]
        section.tables.append(table(["", *compared.names], differing, "How they were drawn and judged", open=False))
    section.code = [("The commands", "\n".join(r.command for r in found.values() if r.command))]
    return section


def settings(runs: Runs) -> Section:
    """What differs between the runs, or from the recipe; all settings behind that."""
    section = Section("Settings")
    columns = {run.name: run.config.flat() for run in runs}
    recipe = runs[0].recipe()
    if len(runs) == 1 and recipe is not None:
        columns = {f"recipe {runs[0].config.recipe}": recipe.flat()} | columns
    keys = dict.fromkeys(key for flat in columns.values() for key in flat)
    rows = [
        [key, *("-" if key not in flat else shown(flat[key]) for flat in columns.values())]
        for key in keys
        if len({shown(flat.get(key)) for flat in columns.values()}) > 1
    ]
    if rows:
        caption = f"{len(rows)} settings that differ"
        section.tables.append(table(["", *columns], rows, caption, open=len(rows) <= FEW))
    section.code = [(f"All settings of {run.name}", run.config.to_yaml()) for run in runs]
    return section


def shown(value: Any) -> str:
    """A setting in one line."""
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("\n").removesuffix("\n...")


def making(runs: Runs) -> Section:
    """Commands, machines, versions."""
    section = Section("How they were made" if len(runs) > 1 else "How it was made")
    rows = [row for run in runs for row in starts(run)]
    if rows:
        headers = ["run", "from step", "time (UTC)", "command", "machine", "versions"]
        section.tables.append(table(headers, rows, "Every start"))
    unknown = [run.name for run in runs if not run.starts]
    if unknown:
        section.notes = [f"Of {', '.join(unknown)} no command is known: there is no starts.jsonl."]
    return section


def starts(run: RunFiles) -> Iterator[list[str]]:
    for start in run.starts:
        where = mapping(start.get("environment"))
        machine = f"{where.get('device')}, {where.get('system')}, {where.get('processes')} processes of "
        machine += f"{where.get('threads')} threads, {where.get('cores')} cores"
        packages = mapping(where.get("packages"))
        versions = ", ".join(f"{name} {packages[name]}" for name in ("epg", "torch") if name in packages)
        time = str(start.get("time", "")).replace("T", " ").removesuffix("+00:00")
        yield [run.name, f"{start.get('step')}", time, str(start.get("command")), machine, versions]


def mapping(value: Any) -> dict[str, Any]:
    """It, if it is one."""
    return value if isinstance(value, dict) else {}


def missing(runs: Runs, sections: dict[str, Section]) -> list[Missing]:
    """What the page would show too, each with its command."""
    found = []
    for run in runs:
        samples, folder = run.config.objective.samples, run.folder
        if samples and run.receipt is None:
            found.append(Missing(f"a judgement of {run.name}", written("epg", "evaluate", folder)))
        if samples and not (folder / "analysis" / "neighbours.json").is_file():
            found.append(Missing(f"nearest training images of {run.name}", written("epg", "neighbours", folder)))
        means = samples and not jumping(run.config.objective.sampler)
        judged = any("linear/mean" in line for line in run.log) or run.analysis("denoising")
        if means and not judged:
            found.append(Missing(f"{run.name} against the best linear denoiser", written("epg", "denoising", folder)))
    if not sections["features"]:
        found.append(Missing("what the encoders see", written("epg", "features", *(run.folder for run in runs))))
    if not sections["quality"]:
        found.append(Missing("quality over training, in a run to come", "epg finetune ... --evaluation.every 500"))
    return found
