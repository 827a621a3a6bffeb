"""Working through the cells of a study, beside other processes that do the same in the same folder."""

import json
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from epg import signals
from epg.distributed import from_first, processes, rank, several
from epg.drawing import jumping, settled
from epg.errors import InterruptedRunError, RunLockedError
from epg.evaluation.command import run_evaluate
from epg.evaluation.jury import Options
from epg.evaluation.measures import known
from epg.messages import say
from epg.runs import train
from epg.sampling.request import Request
from epg.storage.files import replace_text
from epg.study.claims import claimed, holder
from epg.study.plan import Cell
from epg.study.readability import readable
from epg.training.tracking import read_log

POLL = 2.0  # seconds between looks at what others are doing
OF_ENCODERS = {"feature_std": "higher", "contrastive": "lower", "consistency": "lower"}


@dataclass(frozen=True)
class Place:
    """Where a cell's run, numbers and failures are in the folder of a study."""

    folder: Path
    judged: str

    @classmethod
    def of(cls, cell: Cell, out: Path) -> "Place":
        return cls(out / "cells" / cell.identity, cell.judged)

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def receipt(self) -> Path:
        return self.folder / f"receipt-{self.judged}.json"

    @property
    def result(self) -> Path:
        return self.folder / f"result-{self.judged}.json"

    @property
    def failure(self) -> Path:
        return self.folder / f"failed-{self.judged}.json"

    def content(self, file: Path) -> dict[str, Any] | None:
        """What was written when the cell ended; None where it did not, or where the file is damaged."""
        try:
            found = json.loads(file.read_text())
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None


class Worker:
    """One process, or the processes of one torchrun, at work on a study until nothing is left that could be done.

    A cell that fails is recorded and the others go on; the next call tries it again. Under torchrun, where its
    processes may have come apart, a failure ends the call.
    """

    def __init__(self, cells: Sequence[Cell], out: Path) -> None:
        self.out = out
        self.cells = list({(cell.identity, cell.judged): cell for cell in reversed(cells)}.values())[::-1]
        self.places = {id(cell): Place.of(cell, out) for cell in cells}
        self.retried = {place.failure for place in self.places.values() if place.failure.exists()}
        self.failed: dict[str, str] = {}
        """By the cell's name, why."""
        self.lost = set[str]()
        """Identities of the runs that failed."""

    def work(self) -> None:
        """Raises InterruptedRunError where a stop signal came: the same call continues."""
        with processes():
            left = list(self.cells)
            waiting = False
            while left:
                before = len(left)
                left = [cell for cell in left if not self._settled(cell)]
                if left and len(left) == before:
                    if not waiting:
                        self._say_who(left)
                    waiting = True
                    time.sleep(POLL)

    def _settled(self, cell: Cell) -> bool:
        """Whether nothing is left to do of a cell, after doing it if it is free."""
        place = Place.of(cell, self.out)
        with claimed(place.folder) if rank() == 0 and self._free(cell, place) else nullcontext(False) as ours:
            turn = from_first("done" if self._over(cell, place) else "ours" if ours else "others")
            if turn != "ours":
                return bool(turn == "done")
            try:
                self._run(cell, place)
            except RunLockedError:
                return False
            except Exception as error:
                if isinstance(error, InterruptedRunError) or signals.received:
                    raise
                self._fail(cell, place, error)
                if several():
                    raise
        return True

    def _free(self, cell: Cell, place: Place) -> bool:
        before = cell.begins
        return not self._over(cell, place) and not (isinstance(before, Cell) and self._numbers(before) is None)

    def _over(self, cell: Cell, place: Place) -> bool:
        if self._numbers(cell) is not None:
            return True
        if place.failure not in self.retried and (failure := place.content(place.failure)):
            self._lose(cell, str(failure.get("error")))
            return True
        if isinstance(cell.begins, Cell) and cell.begins.identity in self.lost:
            kind = "generator" if cell.begins.config.objective.samples else "encoder"
            self._lose(cell, f"its {kind} ({cell.begins.name}) failed")
            return True
        return False

    def _numbers(self, cell: Cell) -> dict[str, Any] | None:
        place = Place.of(cell, self.out)
        return place.content(place.result)

    def _run(self, cell: Cell, place: Place) -> None:
        done = sum(self._numbers(other) is not None for other in self.cells)
        if rank() == 0:
            say(f"\n[{done + 1}/{len(self.cells)}] {cell.name}: {cell.config.stage}, {place.run}")
        before = cell.begins
        source = Place.of(before, self.out).run if isinstance(before, Cell) else before
        goes_on = isinstance(before, Cell) and before.config.objective.samples
        train(cell.config, place.run, encoder=None if goes_on else source, base=source if goes_on else None)
        numbers = judge(cell, place) if cell.config.objective.samples else judge_encoder(cell, place)
        if rank() == 0:
            content = {"arm": cell.arm, "seed": cell.seed, "numbers": numbers}
            replace_text(place.result, json.dumps(content, indent=1) + "\n")
            place.failure.unlink(missing_ok=True)

    def _fail(self, cell: Cell, place: Place, error: Exception) -> None:
        text = str(error) or type(error).__name__
        self._lose(cell, text)
        self.retried.discard(place.failure)
        if rank() == 0:
            say(f"{cell.name} failed: {text}")
            replace_text(place.failure, json.dumps({"arm": cell.arm, "seed": cell.seed, "error": text}) + "\n")

    def _lose(self, cell: Cell, why: str) -> None:
        self.failed[cell.name] = why
        self.lost.add(cell.identity)

    def _say_who(self, cells: Sequence[Cell]) -> None:
        for cell in cells:
            if rank() == 0 and (other := holder(Place.of(cell, self.out).folder)):
                say(f"{cell.name}: {other} is at it; waiting")


def judge(cell: Cell, place: Place) -> dict[str, Any]:
    """The metrics of a trained generator, as its receipt has them; empty on other processes than the first."""
    config, evaluation = cell.config, cell.config.evaluation
    jumps = jumping(config.objective.sampler)  # all settings: the run may be that of an arm that samples in another way
    changes = settled(config.sampling.model_dump(), {}, jumps)
    request = Request(
        count=evaluation.count,
        labels=cell.labels,
        changes={name: value for name, value in changes.items() if value is not None},
        batch_size=min(256, max(64, config.training.batch_size)),
        device=config.training.device,
    )
    options = Options(features=evaluation.features, device=config.training.device)
    words = known(evaluation.metrics) or None
    receipt = run_evaluate(
        str(place.run), evaluation.reference, words, evaluation.count, request, options, out=place.receipt
    )
    return {} if receipt is None else {key: number.model_dump() for key, number in receipt.metrics.items()}


def judge_encoder(cell: Cell, place: Place) -> dict[str, Any]:
    """What a linear probe reads in a trained encoder, where the study asks, and the last numbers of its log."""
    if rank() != 0:
        return {}
    return (readable(place.run, cell.probe, cell.config.training.device) if cell.probe else {}) | of_log(place.run)


def of_log(run: Path) -> dict[str, Any]:
    """The last numbers of an encoder's log: its losses and the collapse gauge by noise level."""
    last = read_log(run)[-1]
    return {
        key: {"name": key, "value": value, "error": None, "better": OF_ENCODERS[key.partition("/")[0]]}
        for key, value in last.items()
        if key.partition("/")[0] in OF_ENCODERS and "/q" not in key
    }
