"""Every command in README and docs is one that the program understands; tests/walk runs them."""

import re
import shlex
import tomllib

import pytest

from epg.cli import configure, parse
from tests.walk.printed import PAGES, ROOT, SHELL, of_epg, printed
from tests.walk.shrunk import small

COMMANDS = [item for page in PAGES for item in printed(page) if item.language in SHELL and of_epg(item.text)]


@pytest.mark.parametrize("item", COMMANDS, ids=str)
def test_command_is_understood(item) -> None:  # type: ignore[no-untyped-def]
    """Also those that the walk does not run, behind a launcher or of large recipes."""
    options, overrides = parse(of_epg(item.text))
    if type(options).__name__ in ("Pretrain", "Finetune"):
        stage = getattr(options, "stage", "pretraining")
        assert configure(options.recipe, stage, overrides).stage == stage
    elif type(options).__name__ == "Bench":
        assert configure(options.recipe, options.chosen()[0], overrides)
    else:
        assert not overrides


def test_there_are_commands() -> None:
    assert len(COMMANDS) >= 40


def test_small_commands_differ_in_nothing_but_size() -> None:
    """What is added comes last, so that it counts."""
    for item in COMMANDS:
        words = shlex.split(item.text)
        if words[0] == "epg" and "--compile" not in words and "step-00001000" not in item.text:
            assert small(item.text)[: len(words) - 1] == words[1:]


def test_ci_installs_and_tests_as_the_readme_says() -> None:
    readme, ci = (ROOT / "README.md").read_text(), (ROOT / ".ci" / "run").read_text()
    assert 'pip install -e ".[dev]"' in readme
    assert '-e ".[dev]"' in ci
    assert re.search(r"^pytest", ci, flags=re.M)


MADE = {"recipes.md", "settings.md", "commands.md", "api/index.md"}  # by docs/build.py, which checks all links


def test_pages_link_to_files_that_exist() -> None:
    for page in (*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "AGENTS.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if not target.startswith("http") and target not in MADE:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_links_to_a_heading_find_it() -> None:
    """As the site and code hosts call headings: in small letters, a hyphen for a blank, without punctuation."""
    headings = {
        page.name: {
            re.sub(r"[^\w\- ]", "", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()).replace(" ", "-")
            for heading in re.findall(r"^#+ (.*?)$", page.read_text(), re.M)
        }
        for page in PAGES
    }
    for page in PAGES:
        for target, heading in re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", page.read_text()):
            name = target.rpartition("/")[2] or page.name
            assert "://" in target or name not in headings or heading in headings[name], (
                f"{page.name}: {name}#{heading}"
            )


def test_the_lock_is_of_these_requirements_and_of_the_public_index() -> None:
    """`uv lock` makes it; it must name no mirror, and a hash for every file."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    packages = tomllib.loads((ROOT / "uv.lock").read_text())["package"]
    own = next(package for package in packages if package["name"] == "epg")
    extras = project["optional-dependencies"].values()
    asked = [text for group in (project["dependencies"], *extras) for text in group if not text.startswith("epg[")]
    locked = {f"{one['name']}{one.get('specifier', '')}" for one in own["metadata"]["requires-dist"]}
    assert {re.sub(r"\[.*?\]", "", text).replace("_", "-").lower() for text in asked} <= locked
    for package in packages:
        if package is not own:
            assert package["source"] == {"registry": "https://pypi.org/simple"}
            for file in [*package.get("wheels", []), *([package["sdist"]] if "sdist" in package else [])]:
                assert file["url"].startswith("https://files.pythonhosted.org/")
                assert re.fullmatch(r"sha256:[0-9a-f]{64}", file["hash"])
