"""Builds the documentation as a site: the pages of this folder, and reference pages made from the code.

    pip install -e ".[docs]" && python docs/build.py            # the site is in site/, to be opened or served
    python docs/build.py --serve                                # and looks again when a page changes

No network is needed. Links and anchors are checked: one that leads nowhere ends the build with 1. Which page stands
where is `nav` in zensical.toml.
"""

import argparse
import inspect
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from epg.cli.verbs import VERBS
from epg.config.complaints import models_in
from epg.config.objectives import KINDS
from epg.config.recipe import read_recipe, recipe_files, recipe_names
from epg.config.settings import RunConfig

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs"
STAGED = ROOT / "build" / "docs"
OUTSIDE = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md", "benchmarks/NOTES.md": "notes.md"}
"""Pages that live elsewhere, and what they are called on the site."""
LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)#\s]+)(#[^)\s]*)?\)")


def main() -> int:
    parser = argparse.ArgumentParser(description="Build the documentation as a site, in site/.")
    parser.add_argument("--serve", action="store_true", help="serve it on this machine")
    options = parser.parse_args()
    stage()
    verb = ["serve"] if options.serve else ["build", "--strict", "--clean"]
    return subprocess.run([sys.executable, "-m", "zensical", *verb], cwd=ROOT, check=False).returncode


def stage() -> None:
    """Everything that the site is made of, in build/docs."""
    shutil.rmtree(STAGED, ignore_errors=True)
    shutil.copytree(PAGES, STAGED, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    for page in STAGED.glob("*.md"):
        page.write_text(on_site(page.read_text(), Path("docs")))
    for path, name in OUTSIDE.items():
        (STAGED / name).write_text(on_site((ROOT / path).read_text(), Path(path).parent))
    written = {"recipes": recipes(), "settings": settings(), "commands": commands()}
    for name, lines in written.items():
        (STAGED / f"{name}.md").write_text("\n".join(lines) + "\n")
    api()


# Links ----------------------------------------------------------------------------------------------------------------


def on_site(text: str, folder: Path) -> str:
    """A page of `folder` (from the root) with its links as they are on the site; what is not there becomes plain."""

    def moved(found: re.Match[str]) -> str:
        target, anchor = found[1], found[2] or ""
        place = os.path.normpath(folder / target)
        if place.startswith("docs/"):
            return f"]({place.removeprefix('docs/')}{anchor})"
        if place in OUTSIDE:
            return f"]({OUTSIDE[place]}{anchor})"
        if place.startswith("src/epg") and (module := module_of(ROOT / place)):
            return f"](api/{module}.md)"
        return "](" + LEFT + ")"

    return re.sub(r"\[([^][]+)\]\(" + re.escape(LEFT) + r"\)", r"\1", LINK.sub(moved, text))


LEFT = "not-on-the-site"


def module_of(path: Path) -> str | None:
    """The module of a file or folder, if there is one."""
    is_module = path.suffix == ".py" or (path / "__init__.py").exists()
    return ".".join(path.relative_to(ROOT / "src").with_suffix("").parts) if is_module else None


# Pages from the code --------------------------------------------------------------------------------------------------


def recipes() -> Iterator[str]:
    yield "# Recipes\n\n*For those who choose where to begin.* `epg info NAME` tells what one costs; each is a file of"
    yield "settings, [yours too](training.md#recipes)."
    for name in recipe_names():
        content = read_recipe(name)
        file = list(recipe_files(name))[-1]
        yield f"\n## {name}\n\n{content.get('description', '')}\n"
        yield from table(("stage", "steps", "batch"), list(stages(content)))
        yield f'\n??? note "{file.name}"\n\n    ```yaml'
        yield from (f"    {line}" for line in file.read_text().splitlines())
        yield "    ```"


def stages(content: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    for kind in KINDS:
        if kind in content:
            training = content[kind].get("training", {})
            yield kind, f"{training.get('steps', 0):,}", str(training.get("batch_size", ""))


def settings() -> Iterator[str]:
    yield "# Settings\n\n*For those who change something.* Every one is a flag (`--training.batch-size 64`) and a line"
    yield "of a recipe. Defaults are those of the sections; recipes have their own."
    for name, info in RunConfig.model_fields.items():
        for model in models_in(info):
            kind = model.model_fields.get("kind")
            yield f"\n## {name}{f': {kind.default}' if kind else ''}\n"
            yield from table(("setting", "what it is"), list(fields(model)))


def fields(model: type[BaseModel], above: str = "") -> Iterator[tuple[str, str]]:
    for name, info in model.model_fields.items():
        inner = list(models_in(info))
        if inner:
            for one in inner:
                yield from fields(one, f"{above}{name}.")
        elif name != "kind":
            default = "" if info.default is PydanticUndefined else f"; `{info.default}` unless given"
            yield f"`{above}{name}`", f"{info.description or ''} *{value_of(info)}*{default}"


def value_of(info: FieldInfo) -> str:
    if words := [str(word) for word in get_args(info.annotation) if isinstance(word, str)]:
        return ", ".join(f"`{word}`" for word in words)
    return inspect.formatannotation(info.annotation).replace("|", "or").replace("typing.", "")


def commands() -> Iterator[str]:
    yield "# Commands\n\n*For those at a terminal.* `epg VERB --help-all` says the same, `--help` what most need."
    for name in VERBS:
        lines = (inspect.getdoc(VERBS[name]) or "").splitlines()
        yield f"\n## epg {name}\n\n" + "\n".join(lines)
        shown = subprocess.run(
            [sys.executable, "-m", "epg", name, "--help-all"],
            capture_output=True, text=True, check=True,
            env={**os.environ, "COLUMNS": "100", "NO_COLOR": "1"},
        )  # fmt: skip
        yield f'\n??? note "epg {name} --help-all"\n\n    ```text'
        yield from (f"    {line}" for line in shown.stdout.splitlines())
        yield "    ```"


def api() -> None:
    """A page of every module, from its docstrings."""
    folder = STAGED / "api"
    folder.mkdir()
    names = [str(module_of(path)).removesuffix(".__init__") for path in sorted((ROOT / "src/epg").rglob("*.py"))]
    for name in names:
        (folder / f"{name}.md").write_text(f"# {name}\n\n::: {name}\n")
    lines = ["# Modules", "", "*For those who write Python, or change this package.*", ""]
    lines += [f"- [{name}]({name}.md)" for name in names]
    (folder / "index.md").write_text("\n".join(lines) + "\n")


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |"


if __name__ == "__main__":
    sys.exit(main())
