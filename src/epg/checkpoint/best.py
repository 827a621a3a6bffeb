"""`best.json`: which checkpoint of a run was evaluated best. Retention keeps that one."""

from pathlib import Path
from typing import Any, TypedDict

from epg.errors import ArtefactError
from epg.storage import files
from epg.storage.artefact import read_json, write_json

FILE = "best.json"


class Best(TypedDict):
    """The mark of a run."""

    step: int
    checkpoint: str
    """Relative to the run folder."""
    metric: str
    """Key in the receipts of `evaluations/`."""
    value: float
    better: str
    """lower or higher."""


def best_of(run: Path) -> Best | None:
    """The mark in a run folder; None without a valid one."""
    try:
        content, _ = read_json(run / FILE)
    except ArtefactError:
        return None
    wanted: dict[str, Any] = {"step": int, "checkpoint": str, "metric": str, "value": float, "better": str}
    if any(type(content.get(name)) is not kind for name, kind in wanted.items()):
        return None
    return Best(**{name: content[name] for name in wanted})  # type: ignore[typeddict-item]


def mark(run: Path, best: Best | None) -> None:
    """Replaces the mark, whole or not at all; None removes it. Raises OSError."""
    if best is None:
        files.remove(run / FILE)
        return
    files.clear_rests(run, FILE)  # left by a killed process
    temporary = files.hidden(run / FILE, "tmp")
    write_json(temporary, best)
    files.rename(temporary, run / FILE)
    files.sync_folder(run)
