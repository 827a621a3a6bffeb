"""From a trained generator to the next stage: its whole network, averaged weights, where a run begins (`--from`)."""

import json
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from epg.checkpoint.handover import handed_over
from epg.checkpoint.loading import open_weights
from epg.config.settings import RunConfig
from epg.cost.shape import shape_of
from epg.errors import ArtefactError
from epg.generator import Generator
from epg.objectives.base import normalizer_for

FILE = "base.json"  # in the folder of a run that began with a generator


@dataclass(frozen=True)
class Base:
    """A generator to begin with, and where it comes from."""

    source: Path
    generator: Generator
    encoder: Path | None
    """The encoder of stage 1 that it once began with, where its run says so."""

    @property
    def tensors(self) -> dict[str, Tensor]:
        return self.generator.denoiser.network.state_dict()

    def record(self) -> str:
        """What a run folder keeps of it, as JSON."""
        return json.dumps({"source": str(self.source), "loaded": list(self.tensors)}, indent=1)

    def report(self) -> str:
        """What was taken over, for the user to read."""
        size = sum(t.numel() for t in self.tensors.values())
        return f"generator from {self.source}: {len(self.tensors)} tensors ({size:,} numbers) loaded, 0 missing"


def read_base(path: Path) -> Base:
    """The generator of a run, checkpoint, export, pipeline folder or repository of the Hub. Raises ArtefactError."""
    opened = open_weights(path)
    folders = [path, path.parent, path.parent.parent]  # a checkpoint or an export lies in its run's folder
    encoders = [found for folder in folders if (found := handed_over(folder)) is not None]
    return Base(opened.path, opened.generator(), encoders[0] if encoders else None)


def refuse_misfit(base: Base, config: RunConfig, class_names: tuple[str, ...]) -> None:
    """Raises ArtefactError listing what a resolved configuration has otherwise than the generator it begins with."""
    model = base.generator
    own_names = class_names if model.class_names else ()
    pairs = [
        ("objective.parameterization", model.denoiser.parameterization, config.objective.predicts),
        ("model", model.denoiser.network.shape, shape_of(config.model, config.data, config.gaussians)),
        ("data.normalization", model.normalizer, normalizer_for(config)),
        ("noise.shift", model.shift, config.shift),
        ("classes", model.class_names, own_names),
    ]
    different = [f"  {name}: {old} in the generator, {new} here" for name, old, new in pairs if old != new]
    if different:
        raise ArtefactError(
            f"--from {base.source}: does not fit this run:\n" + "\n".join(different) + "\nUse the recipe and the data "
            "that it was trained with, or pass these settings as flags."
        )
