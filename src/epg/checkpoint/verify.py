"""`epg verify`: is everything in a run folder, a checkpoint, an export or a pipeline folder intact?"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from epg.checkpoint import checkpoint, export
from epg.errors import ArtefactError, UserError
from epg.pipeline import folder as pipeline
from epg.storage import outputs
from epg.storage.artefact import pickle_hint


@dataclass(frozen=True)
class Finding:
    """One checkpoint, export or pipeline; `problem` is empty where it is intact."""

    path: Path
    step: int
    size: int
    """Bytes."""
    problem: str


def check(path: Path) -> list[Finding]:
    """Everything in a run folder, or the checkpoint, export or pipeline itself, each read to the last byte.

    Raises ArtefactError where there is nothing to check.
    """
    if checkpoint.step_of(path) >= 0 or (path / checkpoint.MANIFEST).is_file():
        return [_find(path, _check_checkpoint, checkpoint.step_of(path))]
    if pipeline.is_pipeline(path):
        return [_find(path, _check_pipeline)]
    if export.is_export(path):
        return [_find(path, _check_export)]
    listed = checkpoint.listing(path / "checkpoints")
    findings = [_find(p, _check_checkpoint, checkpoint.step_of(p)) for p in listed]
    if (path / export.FOLDER).exists():
        findings.append(_find(path / export.FOLDER, _check_export))
    if not findings:
        raise ArtefactError(
            f"{path}: neither checkpoints nor an export here. Pass a run folder."
            + checkpoint.offer(path)
            + pickle_hint(path)
        )
    return findings


def reseal(path: Path) -> None:
    """Accepts an export or a pipeline folder as it is now, and says what that changes. Raises ArtefactError."""
    if not (pipeline.is_pipeline(path) or export.is_export(path)):
        raise UserError(f"--reseal {path}: for an export or a pipeline folder; checkpoints are never changed by hand")
    print("\n".join(finding.problem for finding in check(path) if finding.problem) or f"{path}: as it was sealed")
    with outputs.writing(path):
        pipeline.reseal(path) if pipeline.is_pipeline(path) else export.reseal(path)
    print(f"{path}: sealed as it is now")


def verify(path: Path) -> None:
    """Prints a table. Raises ArtefactError if anything is damaged."""
    findings = check(path)
    table = Table("what", "step", "MB", "state", box=None)
    for finding in findings:
        state = f"[red]{_state(finding.problem)}[/red]" if finding.problem else "intact"
        step = str(finding.step) if finding.step >= 0 else ""
        table.add_row(finding.path.name, step, f"{finding.size / 1e6:.1f}", state)
    Console().print(table)
    damaged = [finding for finding in findings if finding.problem]
    if damaged:
        problems = "\n".join(f"  {finding.problem}" for finding in damaged)
        raise ArtefactError(f"{path}: {len(damaged)} of {len(findings)} not intact\n{problems}")


def _find(path: Path, check: Callable[[Path], int], step: int = -1) -> Finding:
    """What `check`, which gives the step, says of a folder; `step` where it fails."""
    problem = ""
    try:
        step = check(path)
    except ArtefactError as error:
        problem = str(error)
    return Finding(path, step, _size(path), problem)


def _check_checkpoint(path: Path) -> int:
    found = checkpoint.read(path)
    for name in sorted(found.groups):
        found.tensors(name)
    return found.step


def _check_pipeline(path: Path) -> int:
    pipeline.check(path)
    return -1


def _check_export(path: Path) -> int:
    found = export.read(path)
    found.tensors()
    return found.step


def _state(problem: str) -> str:
    return "changed by hand" if "changed by hand" in problem else "damaged"


def _size(path: Path) -> int:
    return sum(file.lstat().st_size for file in path.rglob("*") if file.is_file())
