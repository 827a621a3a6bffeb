"""The receipt of an evaluation: every number with its uncertainty and everything that it depends on, as JSON."""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from rich.console import Group, RenderableType
from rich.table import Table

from epg.errors import ArtefactError
from epg.storage.files import replace_text
from epg.storage.outputs import writing
from epg.storage.plain_file import read_plain

FORMAT = 1


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Number(_Model):
    """One metric."""

    name: str
    """As people call it; says which features where these are not Inception's."""
    value: float
    error: float | None = None
    """Standard error of `value` from the finite number of samples."""
    error_from: str = ""
    """How the error was estimated."""
    better: Literal["lower", "higher"]


class ClassAccuracy(_Model):
    """Of the samples of one class, how many the classifier recognised."""

    label: int
    name: str
    count: int
    accuracy: float
    most_often_taken_for: str = ""
    """The wrong class named most often; empty where all were recognised."""


class Receipt(_Model):
    """What was measured, on what, against what, with what. `read` and `write` are its JSON."""

    format: int = FORMAT
    metrics: dict[str, Number]
    """Keys: fid, sfid, inception_score, precision, recall, kid, density, coverage with Inception; `fd_classifier`,
    `precision_classifier`... with another extractor; cmmd; accuracy."""
    samples: dict[str, Any]
    """Kind, count, image size, sha256 of the pixels; of a generator: checkpoint, hash, EMA, seed, labels, sampler."""
    reference: dict[str, Any]
    extractors: dict[str, dict[str, Any]]
    """By name: sha256 of the weights, preprocessing."""
    classes: list[ClassAccuracy] = []
    warnings: list[str] = []
    seed: int = 0
    """Of the subsets that KID draws."""
    environment: dict[str, Any] = {}
    command: str = ""
    time: str = ""
    seconds: float = 0.0

    def write(self, file: Path) -> None:
        """Raises OutputError where the file cannot be written."""
        with writing(file):
            replace_text(file, self.model_dump_json(indent=1) + "\n")

    def table(self) -> RenderableType:
        """For the terminal."""
        numbers = Table("metric", "value", "± (standard error)", "better")
        for number in self.metrics.values():
            error = "" if number.error is None else f"{number.error:.2g}"
            numbers.add_row(number.name, f"{number.value:.4g}", error, number.better)
        if not self.classes:
            return numbers
        classes = Table("class", "samples", "recognised", "most often taken for")
        for c in sorted(self.classes, key=lambda c: c.accuracy)[:20]:
            classes.add_row(c.name, str(c.count), f"{c.accuracy:.1%}", c.most_often_taken_for)
        return Group(numbers, classes)


def read(file: Path) -> Receipt:
    """Raises ArtefactError for anything that is not a receipt."""
    try:
        return Receipt.model_validate(json.loads(read_plain(file)))
    except OSError as error:
        raise ArtefactError(f"{file}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError, ValidationError) as error:
        raise ArtefactError(f"{file}: not a receipt of `epg evaluate` ({str(error).splitlines()[0]})") from error


def intact(file: Path) -> Receipt | None:
    """The receipt in a file; None where there is none, or a damaged one, which is then made again."""
    try:
        return read(file)
    except ArtefactError:
        return None


def default_metric(found: Receipt) -> str:
    """FDr, FID, or else the first Frechet distance, or else the first metric; none in features that were trained in."""
    learnt = [n for n, told in found.extractors.items() if told["sha256"] in found.samples.get("trained_in", ())]
    passed_over = ("_floor", *(f"_{name}" for name in learnt))
    keys = [key for key in found.metrics if not key.endswith(passed_over)]
    distances = (key for key in keys if key.split("_")[0] in ("fid", "fd"))
    return "fdr" if "fdr" in keys else next(distances, keys[0])
