"""Every command and every piece of Python that README and docs print is run, in order, or the walk says why not."""

from pathlib import Path

import pytest

from epg.cli import main
from tests.evaluation.helpers import random_images
from tests.evaluation.test_sources import write_folder
from tests.walk.printed import PAGES, SHELL, Printed, blocks, printed
from tests.walk.shrunk import DROPPED, FLAGS, IN_PYTHON, NOT_RUN, WORDS, reason, small
from tests.walk.taken_for_granted import WORLDS, Names

EVERYTHING = [item for page in PAGES for item in printed(page)]
RUN = [item for item in EVERYTHING if item.language == "python" or reason(item.page, item.text) is None]


@pytest.mark.parametrize("page", [page for page in PAGES if any(item.page == page.name for item in RUN)], ids=str)
def test_a_page(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One folder and one Python session for a page; the only change is size."""
    monkeypatch.chdir(tmp_path)
    walk([item for item in RUN if item.page == page.name], WORLDS[page.name]())


def test_the_readme_with_images_without_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it says: "a folder with a sub-folder per class, or just images"."""
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "path" / "to" / "images", random_images(24, size=20))
    items = [item for item in RUN if item.page == "README.md"]
    walk([item for item in items if not item.text.startswith("epg quickstart")], {})  # tests/test_quickstart.py does


def walk(items: list[Printed], names: Names) -> None:
    for item in items:
        if item.language == "python":
            text = item.text
            for long, short in IN_PYTHON.items():
                text = text.replace(long, short)
            code = compile("\n" * (item.line - 1) + text, item.page, "exec")
            exec(code, names)
            continue
        assert item.text.startswith("epg "), f"{item}: not of ours; say in NOT_RUN why it is not run"
        assert main(small(item.text)) == 0, item


def test_what_is_left_out_or_made_small_is_still_printed() -> None:
    """No exception outlives the command that it was made for."""
    commands = [item for item in EVERYTHING if item.language in SHELL]
    for page, beginning, why in NOT_RUN:
        assert why
        assert any(item.page == page and item.text.startswith(beginning) for item in commands), (page, beginning)
    run = [item.text for item in commands if reason(item.page, item.text) is None]
    for beginning, _ in FLAGS:
        assert any(text.startswith(beginning) for text in run), beginning
    for word in (*WORDS, *DROPPED):
        assert any(word in text for text in run), word
    for piece in IN_PYTHON:
        assert any(piece in item.text for item in EVERYTHING), piece


def test_no_command_hides_in_a_block_of_another_kind() -> None:
    for page in PAGES:
        for block in blocks(page):
            if block.language not in (*SHELL, "python"):
                assert "epg " not in block.text, block
