"""Small verbs: `epg verify`, `epg ema`, `epg info`."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from epg.cli.named import Existing, OutFolder
from epg.cli.numbers import Between
from epg.cli.paths import Place


@dataclass(frozen=True)
class Verify:
    """Read weights to the last byte: is anything damaged or changed?

    Of checkpoints, exports and pipeline folders; the exit code is 77 if so.
    """

    run: tyro.conf.Positional[Existing]
    """Run folder, or one checkpoint, export or pipeline folder."""
    reseal: bool = False
    """Accept an export or pipeline folder that was changed by hand as it is now."""

    def __call__(self) -> None:
        from epg.checkpoint.verify import reseal, verify

        (reseal if self.reseal else verify)(self.run)


@dataclass(frozen=True)
class Ema:
    """Make the weight average of another width, after training.

    From the power-function averages of a run.
    """

    run: tyro.conf.Positional[Existing]
    """Run folder, trained with --training.power-ema."""
    sigma_rel: float
    """Width relative to the training's length, for example 0.08."""
    out: OutFolder
    """Folder for the weights; `epg sample` takes it."""

    def __call__(self) -> None:
        from epg.training.synthesis import synthesise

        snapshots = synthesise(self.run, self.sigma_rel, self.out)
        print(f"{self.out}: width {self.sigma_rel} from {len(snapshots)} snapshots")


@dataclass(frozen=True)
class Info:
    """List recipes; tell size and cost of one, or of a run.

    Parameters, GFLOPs, NFE, memory, hours.
    """

    recipe: tyro.conf.Positional[Place | None] = None
    """Name of a recipe or path of a .yaml file; run folder, checkpoint or export."""
    tables: bool = False
    """The paper's sizes, GFLOPs and hours, recomputed beside its own."""
    gpu: str = "H200"
    """Whose data-sheet peak hours are computed from: H100, A100, RTX 4090..."""
    gpus: Annotated[int, Between(1, 10**6)] = 8
    """Among them the batch is divided."""
    mfu: Annotated[float, Between(0, 1, open_low=True)] = 0.235
    """Share of the peak that training reaches; 23.5 % gives the paper's hours within a fifth."""

    def __call__(self) -> None:
        from epg.cli.info import Machine, list_recipes, print_info, print_tables

        if self.tables:
            print_tables()
        elif self.recipe is None:
            list_recipes()
        else:
            print_info(self.recipe, Machine(self.gpu, self.gpus, self.mfu))
