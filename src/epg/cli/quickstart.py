"""`epg quickstart`."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from epg.cli.named import ImageSet, OutFolder
from epg.cli.numbers import Between, Seed, Side


@dataclass(frozen=True)
class Quickstart:
    """Everything on a small budget: train, draw, judge, compare.

    On scikit-learn's digits, or on a folder of yours: an encoder is pre-trained, a diffusion and a one-step model are
    trained behind it, and the same from scratch. Ends with a page to open in a browser. Running the same command again
    continues an interrupted study and shows a finished one; another --minutes is another study.
    """

    CONTINUES: ClassVar[bool] = True

    data: ImageSet = "digits"
    """`digits`, or whatever `epg prepare` takes: a folder of images (class folders or flat), an archive, a table..."""
    minutes: Annotated[float, Between(0, 10**6, open_low=True)] = 10.0
    """Time for everything; longer is better."""
    out: OutFolder | None = None
    """Folder for runs and page; runs/quickstart-NAME if not given, and -MINUTESmin behind it where that holds a study
    of another length."""
    image_size: Side | None = None
    """Side in pixels; 8 for digits, 32 otherwise."""
    seed: Seed = 0

    def __call__(self) -> None:
        from epg.quickstart import run_quickstart

        run_quickstart(
            self.data,
            minutes=self.minutes,
            out=self.out,
            image_size=self.image_size,
            seed=self.seed,
        )
