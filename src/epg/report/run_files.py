"""A run as its files tell it: settings, log, pictures, receipts, starts. It needs no images, and writes nothing."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from epg.analysis.compare_report import short_names
from epg.checkpoint import checkpoint, lock
from epg.checkpoint.loading import read_trained
from epg.config.recipe import run_config
from epg.config.settings import RunConfig, parse
from epg.config.yaml_file import read_yaml
from epg.errors import ArtefactError, UserError, refuse_missing
from epg.evaluation import receipt
from epg.evaluation.periodic import FOLDER as EVALUATIONS
from epg.evaluation.receipt import Receipt
from epg.storage.artefact import read_json
from epg.storage.locks import is_held
from epg.training.beginning import starts_of
from epg.training.tracking import read_log

MOST_RUNS = 8  # side by side


@dataclass(frozen=True)
class RunFiles:
    """What is read of one run folder."""

    folder: Path
    name: str
    """What tells it from the others on the page."""
    config: RunConfig

    @cached_property
    def log(self) -> list[dict[str, float]]:
        return read_log(self.folder)

    @cached_property
    def step(self) -> int:
        """The newest that anything tells of."""
        logged = [int(line["step"]) for line in self.log[-1:]]
        saved = [checkpoint.step_of(path) for path in checkpoint.listing(self.folder / "checkpoints")[-1:]]
        return max([*logged, *saved, *list(self.previews)[-1:], 0])

    @cached_property
    def running(self) -> bool:
        return is_held(self.folder / lock.FILE)

    @property
    def finished(self) -> bool:
        return self.step >= self.config.training.steps

    @property
    def state(self) -> str:
        """In words."""
        total, saved = self.config.training.steps, checkpoint.listing(self.folder / "checkpoints")
        if self.finished:
            return f"finished: {total:,} steps"
        place = f"step {self.step:,} of {total:,}"
        if self.running:
            return f"running: {place}"
        again = f"; the same command continues at {checkpoint.step_of(saved[-1]):,}" if saved else ""
        return f"not running: {place}{again}"

    @cached_property
    def previews(self) -> dict[int, Path]:
        """Pictures by step, earliest first."""
        found = {checkpoint.step_of(path.with_suffix("")): path for path in (self.folder / "previews").glob("*.png")}
        return {step: found[step] for step in sorted(found) if step >= 0}

    @cached_property
    def evaluations(self) -> dict[int, Receipt]:
        """Receipts along the way by step, earliest first; damaged ones are left out."""
        files = {checkpoint.step_of(path.with_suffix("")): path for path in (self.folder / EVALUATIONS).glob("*.json")}
        found = {step: receipt.intact(files[step]) for step in sorted(files) if step >= 0}
        return {step: one for step, one in found.items() if one is not None}

    @cached_property
    def receipt(self) -> Receipt | None:
        """What `epg evaluate` left, or else the newest of those along the way."""
        own = receipt.intact(self.folder / "evaluation.json")
        return own or (list(self.evaluations.values())[-1] if self.evaluations else None)

    @cached_property
    def starts(self) -> list[dict[str, Any]]:
        return starts_of(self.folder)

    def analysis(self, name: str) -> dict[str, Any]:
        """The numbers of an analysis; empty where there are none."""
        try:
            return read_json(self.folder / "analysis" / f"{name}.json")[0]
        except ArtefactError:
            return {}

    def entries(self, name: str, key: str) -> list[dict[str, Any]]:
        """A list of mappings in the numbers of an analysis; what in it is something else is left out."""
        found = self.analysis(name).get(key)
        return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []

    @property
    def terms(self) -> list[str]:
        """The loss and its terms, as the log has them: before anything else, without those by noise level."""
        names = list(self.log[-1]) if self.log else []
        end = names.index("grad_norm") if "grad_norm" in names else len(names)
        return [name for name in names[:end] if "/" not in name and name != "step"]

    def by_level(self) -> list[str]:
        """The term by noise level: its four quarters."""
        return sorted({name for line in self.log for name in line if re.fullmatch(r"\w+/q[1-4]", name)})

    def points(self, name: str) -> list[tuple[float, float]]:
        """A number of the log over steps."""
        return [(line["step"], line[name]) for line in self.log if name in line]

    def recipe(self) -> RunConfig | None:
        """What it was before any flag; None of a recipe that is not ours."""
        try:
            return run_config(self.config.recipe, self.config.stage)
        except UserError:
            return None


def read_runs(paths: Sequence[Path]) -> list[RunFiles]:
    """Runs by their folders; a folder that holds runs stands for all of them, in the order in which they began.

    Raises UserError where there is none, or more than a page takes.
    """
    folders = [folder for path in paths for folder in folders_in(path)]
    if not folders:
        raise UserError("epg report: pass at least one run folder")
    if len(folders) > MOST_RUNS:
        raise UserError(f"epg report: {len(folders)} runs, and a page takes {MOST_RUNS}; name those to compare")
    named = zip(folders, short_names(folders), strict=True)
    return [RunFiles(folder, name, config_of(folder)) for folder, name in named]


def folders_in(path: Path) -> list[Path]:
    """The run folders that a path stands for. Raises ArtefactError where there is none."""
    if is_run(path):
        return [path]
    inside = [folder for folder in sorted(path.iterdir()) if is_run(folder)] if path.is_dir() else []
    if not inside:
        refuse_missing(path)
        hint = checkpoint.offer(path) if path.is_dir() else ""
        raise ArtefactError(f"{path}: no run folder (it has no config.yaml), nor a folder of runs.{hint}")
    return sorted(inside, key=began)


def is_run(folder: Path) -> bool:
    return (folder / "config.yaml").is_file() or (folder / "checkpoints").is_dir()


def began(folder: Path) -> tuple[str, str]:
    """What sorts runs by when they began, as far as that is known, and by name."""
    return next((str(start.get("time")) for start in starts_of(folder)), ""), folder.name


def config_of(folder: Path) -> RunConfig:
    """Of `config.yaml`, or, where that is missing, of the newest checkpoint. Raises UserError, ArtefactError."""
    file = folder / "config.yaml"
    return parse(read_yaml(file), str(file)) if file.is_file() else read_trained(folder).config
