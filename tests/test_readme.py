"""Every command in README and docs is one that the program understands."""

import re
import shlex
from pathlib import Path

import pytest

from epg.cli import configure, parse

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands() -> list[tuple[str, str]]:
    """(page, command) of every line that starts with `epg ` in a code block."""
    found = []
    for page in PAGES:
        for block in re.findall(r"```(?:bash|sh)\n(.*?)```", page.read_text(), flags=re.S):
            lines = block.replace("\\\n", " ").splitlines()
            found += [(page.name, line.split("#")[0].strip()) for line in lines if re.match(r"epg \w", line)]
    return found


@pytest.mark.parametrize(("page", "command"), commands())
def test_command_is_understood(page: str, command: str) -> None:
    options, overrides = parse(shlex.split(command)[1:])
    if type(options).__name__ in ("Pretrain", "Finetune") and options.recipe in ("digits", "small", "cifar10"):
        stage = getattr(options, "stage", "pretraining")
        assert configure(options.recipe, stage, overrides).stage == stage
    else:
        assert not overrides


def test_there_are_commands() -> None:
    assert len(commands()) >= 8


def test_ci_installs_and_tests_as_the_readme_says() -> None:
    readme, ci = (ROOT / "README.md").read_text(), (ROOT / ".ci" / "run").read_text()
    assert 'pip install -e ".[dev]"' in readme
    assert '-e ".[dev]"' in ci
    assert re.search(r"^pytest", ci, flags=re.M)


def test_pages_link_to_files_that_exist() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"
