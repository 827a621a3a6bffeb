"""The notebook of the docs: kept without outputs, and run cell by cell at a tiny size."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

NOTEBOOK = Path(__file__).parents[1] / "docs" / "digits.ipynb"
SMALL = {
    '"training.steps": 500, "training.preview_every": 500': '"training.steps": 2, "training.preview_every": 2',
    '"training.steps": 1200, "training.preview_every": 200': '"training.steps": 2, "training.preview_every": 1',
}


def cells() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(NOTEBOOK.read_text())["cells"]
    return found


def test_it_is_kept_without_outputs() -> None:
    code = [cell for cell in cells() if cell["cell_type"] == "code"]
    assert len(code) == 6
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


def test_every_cell_runs_and_shows_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Jupyter does: one session, `display` at hand, the value of a cell's last line shown."""
    monkeypatch.chdir(tmp_path)
    shown: list[Any] = []
    names: dict[str, Any] = {"__name__": "__main__", "display": shown.append}
    sources = ["".join(cell["source"]) for cell in cells() if cell["cell_type"] == "code"]
    assert all(sum(long in source for source in sources) == 1 for long in SMALL)
    for source in sources:
        for long, short in SMALL.items():
            source = source.replace(long, short)
        tree = ast.parse(source)
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, "cell", "exec"), names)
        if isinstance(last, ast.Expr):
            shown.append(eval(compile(ast.Expression(last.value), "cell", "eval"), names))
    pictures = [one for one in shown if isinstance(one, Image.Image)]
    assert len(pictures) == 1 + 2 + 3
    assert all(picture.getextrema() != (0, 0) and picture.width > 50 for picture in pictures)
