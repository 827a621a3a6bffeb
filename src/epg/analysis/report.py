"""What every analysis leaves: numbers as JSON, a figure, a table on the terminal, and where they went."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from epg.storage.files import replace_text, replacing
from epg.storage.outputs import writing

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def analysis_folder(path: Path) -> Path:
    """Where analyses of a run, checkpoint, export or weight file go unless told otherwise: `analysis` beside it.

    Never into a checkpoint, which holds nothing but what its manifest names.
    """
    if path.is_file() or path.resolve().name == "export":
        path = path.resolve().parent
    elif path.resolve().parent.name == "checkpoints":
        path = path.resolve().parent.parent
    return path / "analysis"


def publish(out: Path, name: str, content: Any, figure: "Figure", table: Table, *lines: str) -> None:
    """Writes NAME.json and NAME.png into a folder; prints table, lines and where the files are. Raises OutputError."""
    write_json(content, out / f"{name}.json")
    save_figure(figure, out / f"{name}.png")
    Console().print(table)
    for line in lines:
        print(line)
    print(f"numbers in {out / name}.json, figure in {out / name}.png")


def write_json(content: Any, file: Path) -> None:
    """Whole or not at all; folders are made. Raises OutputError."""
    with writing(file):
        replace_text(file, json.dumps(content, indent=1, allow_nan=False) + "\n")


def new_figure(width: float = 7, height: float = 4) -> "Figure":
    """A figure of these inches that belongs to no window."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=110, layout="constrained")


def save_figure(figure: "Figure", file: Path) -> None:
    """As PNG; folders are made. Raises OutputError."""
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as temporary:
            figure.savefig(temporary, format="png")


def curve(axes: Any, x: Sequence[float], values: Sequence[float], errors: Sequence[float], label: str = "") -> None:
    """Numbers with their standard errors over a setting."""
    axes.errorbar(x, values, errors, marker="o", markersize=4, capsize=2, label=label or None)
    axes.grid(alpha=0.3)
