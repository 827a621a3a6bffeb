"""What a page is made of."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from epg.report.pictures import Picture


@dataclass(frozen=True)
class Cell:
    """Of a table."""

    text: str
    strong: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of words; the first column names them."""

    headers: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str
    open: bool = True
    """Whether it is there at once, or behind its caption."""


@dataclass(frozen=True)
class Strip:
    """Pictures of one run over training."""

    name: str
    pictures: Sequence[Picture]


@dataclass
class Section:
    """A heading and what is below it. Without anything below it, it is left out."""

    title: str
    text: str = ""
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    strips: list[Strip] = field(default_factory=list)
    charts: list[Markup] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    code: list[tuple[str, str]] = field(default_factory=list)
    """Long texts behind their names."""

    def add(self, chart: Markup | None) -> None:
        if chart is not None:
            self.charts.append(chart)

    @property
    def steps(self) -> list[int]:
        """That the slider stops at."""
        return sorted({picture.step or 0 for strip in self.strips for picture in strip.pictures})

    def __bool__(self) -> bool:
        return bool(
            self.notes or self.warnings or self.strips or self.charts or self.pictures or self.tables or self.code
        )


@dataclass(frozen=True)
class Missing:
    """Something a page could show, and the command that makes it."""

    what: str
    command: str


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], caption: str, open: bool = True) -> Table:
    """A table of plain words."""
    return Table(headers, [[Cell(text) for text in row] for row in rows], caption, open)
