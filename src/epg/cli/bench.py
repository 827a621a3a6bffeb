"""`epg bench`."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import tyro

from epg.cli.named import Out, refuse_no_images
from epg.cli.numbers import Between
from epg.cli.paths import Place
from epg.cli.process import of_several
from epg.errors import UserError

TINY = (
    *("--model.encoder.depth", "1", "--model.encoder.width", "32", "--model.encoder.heads", "2"),
    *("--model.decoder.width", "32", "--model.decoder.heads", "2", "--model.projector-hidden", "32"),
    *("--training.batch-size", "16", "--training.compile", "False", "--training.precision", "fp32"),
)


@dataclass(frozen=True)
class Bench:
    """Time a recipe on this machine, stage by stage; trains nothing.

    Any field of the recipe is a flag too: `epg bench imagenet256-xl --training.batch-size 128`. Images are random.
    """

    TAKES_OVERRIDES: ClassVar[bool] = True

    recipe: tyro.conf.Positional[Place]
    """Name of a recipe (`epg info` lists them), or the path of a .yaml file."""
    stages: tuple[str, ...] = ()
    """Of the recipe; all if not given."""
    seconds: Annotated[float, Between(0, 3600)] = 5.0
    """For each of steps, loader and sampling of a stage, once all is compiled."""
    compile: Literal["recipe", "off", "on", "both"] = "recipe"
    """torch.compile of every transformer block; both measures with and without."""
    own_images: bool = False
    """Read the recipe's images (--data.source), so that the loader's rate is theirs."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    json: Out | None = None
    """File for all figures."""
    tiny: bool = False
    """Networks and batches of milliseconds, to try the command."""

    def __call__(self, overrides: list[str]) -> None:
        from epg.cli.train import configure

        flags = [*(TINY if self.tiny else ()), *overrides, "--training.device", self.device]
        configs = [configure(self.recipe, stage, flags) for stage in self.chosen()]
        if self.own_images and not of_several():
            refuse_no_images(configs[0].data.source, "--data.source ")
        from epg.bench.command import run_bench  # seconds, after what a wrong flag is told

        run_bench(configs, self.seconds, self.compile, self.own_images, self.json)

    def chosen(self) -> list[str]:
        """The stages to measure. Raises UserError for one that the recipe does not have."""
        from epg.config.recipe import stages_of

        there = stages_of(self.recipe)
        if missing := [stage for stage in self.stages if stage not in there]:
            raise UserError(f"--stages {missing[0]}: {self.recipe} has {', '.join(there)}")
        return list(self.stages) or there
