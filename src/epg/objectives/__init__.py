"""Objectives: what a stage minimises. `OBJECTIVES` is the registry."""

from epg.config.objectives import Stage
from epg.objectives.base import Objective
from epg.objectives.consistency import Consistency
from epg.objectives.diffusion import Diffusion
from epg.objectives.onestep import OneStep
from epg.objectives.pretraining import Pretraining

OBJECTIVES: dict[Stage, type[Objective]] = {
    "pretraining": Pretraining,
    "diffusion": Diffusion,
    "consistency": Consistency,
    "onestep": OneStep,
}
"""The module of every kind of `epg.config.objectives`."""
