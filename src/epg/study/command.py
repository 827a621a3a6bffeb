"""What `epg study` does."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from epg.config.settings import RunConfig
from epg.cost.training import training_flops
from epg.distributed import rank
from epg.errors import UserError
from epg.study.execute import Place, Worker
from epg.study.plan import Cell, cells_of, read_study
from epg.study.table import report

CLASSES = 10  # of a recipe that takes their number from the data, where costs are estimated


class FailedCellsError(UserError):
    """Some cells of a study failed; the others were finished."""

    exit_code = 1


def run_study(file: Path, out: Path | None = None, *, only: Sequence[str] = (), dry_run: bool = False) -> None:
    """Executes what is left of a study and shows its table; `dry_run` prints the cells and what they cost.

    Args:
        out: its folder, which other processes and studies may share; runs/studies/NAME if not given.
        only: arms to execute, with those that they begin with.

    Raises FailedCellsError naming the cells that failed, once everything else is done.
    """
    study = read_study(file)
    if unknown := [arm for arm in only if arm not in study.arms]:
        raise UserError(f"--only {unknown[0]}: no arm of {file}; there are {', '.join(study.arms)}")
    folder = out or Path("runs") / "studies" / file.stem
    if dry_run:
        show(plan_of(file, only), folder)
        return
    cells = cells_of(study, file)
    worker = Worker(needed(cells, only), folder)
    worker.work()
    if rank() == 0:
        report(study, cells, folder, file.stem, worker.failed)
    if worker.failed:
        listed = "\n".join(f"  {name}: {why}" for name, why in worker.failed.items())
        raise FailedCellsError(f"{len(worker.failed)} cells failed; the same command tries them again:\n{listed}")


def needed(cells: Sequence[Cell], only: Sequence[str]) -> list[Cell]:
    """The cells of some arms (all where none are named), and those that they begin with."""
    chosen = [cell for cell in cells if not only or cell.arm in only]
    for cell in chosen:  # which grows meanwhile
        if isinstance(cell.begins, Cell) and cell.begins not in chosen:
            chosen.append(cell.begins)
    return [cell for cell in cells if cell in chosen]


def plan_of(file: Path, only: Sequence[str]) -> tuple[list[Cell], bool]:
    """The cells, and whether their images are there: without them nothing can be said of what is done."""
    study = read_study(file)
    cells = cells_of(study, file, images=False)
    sources = {cell.config.data.source for cell in cells}
    known = all(source == "digits" or Path(source).exists() for source in sources)  # a look asks no network
    return needed(cells_of(study, file) if known else cells, only), known


def show(plan: tuple[list[Cell], bool], out: Path) -> None:
    """The arms of a study: length, seeds that are done, and what training them costs in 10^15 operations."""
    cells, known = plan
    shown = Table("arm", "stage", "begins with", "steps", "batch", "PFLOP", "seeds", "done")
    runs: dict[str, float] = {}
    for arm in dict.fromkeys(cell.arm for cell in cells):
        own = [cell for cell in cells if cell.arm == arm]
        config, training = own[0].config, own[0].config.training
        flops = training_flops(counted(config)) * training.batch_size * training.steps / 1e15
        fresh = {cell.identity: flops for cell in own if cell.identity not in runs}
        runs |= fresh
        begins = own[0].begins.arm if isinstance(own[0].begins, Cell) else str(own[0].begins or "")
        done = str(sum(Place.of(cell, out).result.exists() for cell in own)) if known else "?"
        cost = f"{sum(fresh.values()):.3g}" if fresh else "as above"
        row = (f"{training.steps:,}", str(training.batch_size), cost, str(len(own)), done)
        shown.add_row(arm, config.stage, begins, *row)
    Console().print(shown)
    print(f"{len(cells)} cells, {len(runs)} runs, {sum(runs.values()):.4g} PFLOP of training; in {out}")
    if not known:
        print("note: the images are not on this machine, so nothing is known of what is done")


def counted(config: RunConfig) -> RunConfig:
    """The configuration with a number of classes, so that its network can be counted."""
    if config.model.num_classes is not None:
        return config
    return config.model_copy(update={"model": config.model.model_copy(update={"num_classes": CLASSES})})
