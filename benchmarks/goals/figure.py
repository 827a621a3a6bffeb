"""What every goal of reliability comes out as: a line of the table."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.reliability.driver import Driver, run_config


@dataclass
class Figure:
    """One line of the table."""

    goal: str
    what: str
    found: str
    met: bool
    seconds: float = 0.0


def listed(problems: Sequence[str]) -> str:
    """How many, and the first."""
    return f"{len(problems)} broken" + (f": {problems[0][:200]}" if problems else "")


def encoder(driver: Driver, folder: Path) -> Path:
    """A pre-trained encoder for the consistency stage's auxiliary loss."""
    job = driver.train(folder / "encoder", run_config("pretraining", 2))
    assert job.codes == [0], job.said
    return folder / "encoder"
