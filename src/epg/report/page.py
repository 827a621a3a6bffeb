"""`epg report`: the page of some runs, made of sections, in one file that needs no other."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from epg.circumstances import command, now
from epg.command_line import without_home_in, written
from epg.errors import OutputError, UserError
from epg.report import curves, seen, words
from epg.report.parts import Section
from epg.report.run_files import RunFiles, read_runs
from epg.storage.files import replace_text
from epg.storage.outputs import writing
from epg.storage.plain_file import open_plain

REFRESHED = 30.0  # seconds between two looks at a run in training
MARK = '<meta name="generator" content="epg report">'
NAME = "report.html"

SECTIONS: dict[str, Callable[[Sequence[RunFiles]], Section]] = {
    "previews": seen.previews,
    "quality": curves.quality,
    "receipts": words.receipts,
    "losses": curves.losses,
    "levels": curves.by_level,
    "linear": curves.linear,
    "gauge": curves.gauge,
    "features": seen.features,
    "examples": seen.examples,
    "neighbours": seen.neighbours,
    "others": seen.others,
    "health": curves.health,
    "settings": words.settings,
    "making": words.making,
}


@dataclass(frozen=True)
class Opening:
    """What stands before the sections of a page about more than runs."""

    title: str
    paragraphs: Sequence[str] = ()
    sections: Sequence[Section] = field(default_factory=list)
    commands: str = ""
    """What to do next."""


def run_report(runs: Sequence[Path], out: Path | None = None, *, watch: bool = False) -> Path:
    """Writes the page of runs, or of the runs in a folder, and says where it is.

    Args:
        out: its file; report.html in the folder of the run, or in the one that all of them are in.
        watch: write it again every REFRESHED seconds, until none of the runs is running; an open page follows.

    Raises UserError, ArtefactError where there is no run, OutputError.
    """
    found = read_runs(runs)
    file = out or common([run.folder for run in found]) / NAME
    refuse_foreign(file)
    while watch and any(run.running for run in found):
        write_page(found, file, watched=True)
        print(f"{file}: {', '.join(run.state for run in found)}", flush=True)
        time.sleep(REFRESHED)
        found = read_runs(runs)
    write_page(found, file)
    print(f"Open {file} in a browser.")
    if generators := [run.folder for run in found if run.config.objective.samples]:
        folder = generators[-1]
        out = folder.with_name(f"{folder.name}-pipeline")
        print(f"Next: {written('epg', 'convert', folder, '--out', out)}")
    return file


def common(folders: Sequence[Path]) -> Path:
    """The folder of the only run, or the one that all runs are in, however deep."""
    if len(folders) == 1:
        return folders[0]
    whole = [folder.resolve() for folder in folders]
    found = next(parent for parent in whole[0].parents if all(folder.is_relative_to(parent) for folder in whole))
    return found.relative_to(Path.cwd()) if found.is_relative_to(Path.cwd()) else found


def write_page(runs: Sequence[RunFiles], file: Path, opening: Opening | None = None, *, watched: bool = False) -> None:
    """Writes the page of runs. Raises OutputError."""
    with writing(file):
        replace_text(file, render(runs, opening, watched=watched))


def refuse_foreign(file: Path) -> None:
    """Raises UserError for another ending than .html, OutputError where something is there that is no page of ours."""
    if file.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--out {file}: a page ends in .html")
    try:
        with open_plain(file) as stream:
            ours = MARK.encode() in stream.read(1000)
    except FileNotFoundError:
        return
    except OSError:
        ours = False
    if not ours:
        raise OutputError(f"--out {file}: is there already, and no page of epg report. Choose another name.")


def title(runs: Sequence[RunFiles]) -> str:
    """Of the page."""
    if len(runs) == 1:
        config = runs[0].config
        return f"{config.stage} of recipe {config.recipe}"
    return ", ".join(run.name for run in runs)


def render(runs: Sequence[RunFiles], opening: Opening | None = None, *, watched: bool = False) -> str:
    """The page as text."""
    sections = {name: make(runs) for name, make in SECTIONS.items()}
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: value if isinstance(value, Markup) else without_home_in(str(value)),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(
        mark=Markup(MARK),
        opening=opening or Opening(title(runs)),
        cards=[(run.name, words.facts(run, runs), run.step, run.config.training.steps) for run in runs],
        sections={name: section for name, section in sections.items() if section},
        missing=words.missing(runs, sections),
        refreshed=int(REFRESHED) if watched else 0,
        made=f"epg {version('epg')}, {now()}",
        command=command(),
    )
