"""What a study found, and its file."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

RESULTS = "results.json"


class Judged(NamedTuple):
    """A checkpoint: how many of its samples were recognised, and their Frechet distance with its standard error."""

    step: int
    accuracy: float
    frechet: float
    error: float


@dataclass(frozen=True)
class PartResult:
    """One training run of the study. `accuracy` and `frechet` are None where there is nothing to recognise."""

    name: str
    title: str
    steps: int
    accuracy: float | None = None
    frechet: float | None = None
    progress: tuple[Judged, ...] = ()
    """Checkpoints along the way, the last one included."""

    def with_progress(self, progress: Sequence[Judged]) -> "PartResult":
        last = progress[-1]
        return replace(self, accuracy=last.accuracy, frechet=last.frechet, progress=tuple(progress))


@dataclass(frozen=True)
class StudyResult:
    """Everything that the table and the page show."""

    data: str
    recipe: str
    image_size: int
    images: int
    class_names: tuple[str, ...]
    parts: tuple[PartResult, ...]
    floor: float | None
    classifier_accuracy: float | None
    samples: int
    seconds: float
    seed: int
    torch: str
    threads: int
    advice: str = ""
    """What to expect of a training much shorter than the recipe's."""

    @property
    def generators(self) -> list[PartResult]:
        return [part for part in self.parts if part.name != "pretraining"]


def finished(folder: Path) -> StudyResult | None:
    """The results of a finished study; None where it is not finished."""
    try:
        numbers = json.loads((folder / RESULTS).read_bytes())
        numbers["parts"] = tuple(
            PartResult(**{**part, "progress": tuple(Judged(*one) for one in part["progress"])})
            for part in numbers["parts"]
        )
        pictures = [folder / f"samples-{part.name}.png" for part in numbers["parts"] if part.name != "pretraining"]
        result = StudyResult(**{**numbers, "class_names": tuple(numbers["class_names"])})
    except (OSError, ValueError, TypeError, KeyError):  # none yet, or damaged: it is made again
        return None
    return result if all(picture.is_file() for picture in (*pictures, folder / "real.png")) else None
