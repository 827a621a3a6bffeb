"""Run configuration: typed, every unknown key an error, YAML in and out.

A *recipe* (`recipes/*.yaml` here, or a file of yours) describes data, networks and the stages; `run_config` resolves it
for one stage into a `RunConfig`, which is what a run folder records and what resuming compares.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import SerializeAsAny, ValidationError

from epg.config.complaints import Locate, complaints, nowhere
from epg.config.objectives import ObjectiveConfig, Stage
from epg.config.ranges import Seed
from epg.config.sections import (
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    NoiseConfig,
    OptimizerConfig,
    SamplingConfig,
    Section,
    TrainingConfig,
)
from epg.errors import UserError

EVALUATIONS = 10  # of a run that is evaluated without being told to


class RunConfig(Section):
    """One stage of one recipe, resolved: everything a run depends on."""

    recipe: str
    """Name of the recipe it came from."""
    seed: Seed = 0
    data: DataConfig
    model: ModelConfig
    noise: NoiseConfig = NoiseConfig()
    objective: SerializeAsAny[ObjectiveConfig]
    optimizer: OptimizerConfig
    training: TrainingConfig
    sampling: SamplingConfig = SamplingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @property
    def stage(self) -> Stage:
        return self.objective.kind

    @property
    def folder(self) -> Path:
        """Where its run goes unless told otherwise."""
        return Path("runs") / self.recipe / self.stage

    @property
    def weights(self) -> str:
        """Those that sample and are exported: the first average (of fixed decay, if there is one), else the trained."""
        averages = [f"ema-{decay}" for decay in self.training.ema]
        averages += [f"power-{width}" for width in self.training.power_ema]
        return averages[0] if averages else "model"

    @property
    def shift(self) -> float:
        """Factor between unshifted and shifted levels."""
        return self.data.image_size / 64 if self.noise.shift is None else self.noise.shift

    @property
    def evaluated_every(self) -> int:
        """Steps between evaluations while training; 0 is never."""
        if self.evaluation.every is None:
            return max(1, self.training.steps // EVALUATIONS) if self.objective.judged else 0
        return self.evaluation.every

    @property
    def gaussians(self) -> int:
        """Of the network's `spectrum`, see `ObjectiveConfig`."""
        return self.objective.gaussians(self.model.num_classes or 0)

    @property
    def internal(self) -> bool:
        """Whether the network has a head on its encoder, see `ObjectiveConfig`."""
        return self.objective.internal

    def flat(self) -> dict[str, Any]:
        """Every setting as `section.field: value`, in plain data."""

        def walk(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
            if isinstance(value, dict):
                for name, inner in value.items():
                    yield from walk(f"{prefix}.{name}" if prefix else name, inner)
            else:
                yield prefix, value

        return dict(walk("", self.model_dump(mode="json")))

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def parse(content: Mapping[str, Any], where: str, locate: Locate = nowhere) -> RunConfig:
    """A RunConfig from plain data; all that is wrong is listed in one message. Raises UserError.

    `locate` says on which line of a file a setting stands.
    """
    if wrong := complaints_of(content, locate):
        raise UserError(f"{where}: {len(wrong)} wrong settings:\n" + "\n".join(wrong))
    return RunConfig.model_validate(content)


def complaints_of(content: Mapping[str, Any], locate: Locate = nowhere, complete: bool = True) -> list[str]:
    """A line for each unknown key, wrong type, number out of range and, if it is to be `complete`, missing setting."""
    try:
        RunConfig.model_validate(content)
    except ValidationError as error:
        return complaints(error, RunConfig, locate, missing=complete)
    return []
