"""What README and docs print: every command and every piece of Python, in the order of the page."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SHELL = ("bash", "sh")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Printed:
    """A command of one line, or a block of Python."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line} {self.text.splitlines()[0]}"


def blocks(page: Path) -> list[Printed]:
    """Code blocks as they stand; their language may be empty (trees of files)."""
    text = page.read_text()
    return [
        Printed(page.name, text.count("\n", 0, found.start(2)) + 1, found[1], found[2])
        for found in BLOCK.finditer(text)
    ]


def printed(page: Path) -> list[Printed]:
    """Commands (continued lines joined, comments dropped) and Python blocks of a page."""
    found = []
    for block in blocks(page):
        if block.language == "python":
            found.append(block)
        elif block.language in SHELL:
            line = block.line
            for command in re.split(r"(?<!\\)\n", block.text):
                words = shlex.split(command.replace("\\\n", " "), comments=True)
                if words:
                    found.append(Printed(block.page, line, block.language, shlex.join(words)))
                line += 1 + command.count("\n")
    return found


def of_epg(command: str) -> list[str] | None:
    """The arguments of `epg` in a command, also behind a launcher; None for another program."""
    words = shlex.split(command)
    if words[0] == "epg":
        return words[1:]
    return words[words.index("epg.cli") + 1 :] if "epg.cli" in words else None
