"""The numbers that settings may be. A type says its range; beyond it a number is without meaning, or a slip of the
finger with which no run would work."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError


def no_truth(value: Any) -> Any:
    """Python takes true for 1. Text is taken for a number with reason: YAML reads 1e-4 as text."""
    if isinstance(value, bool):
        raise PydanticCustomError("truth", "a number is expected, not true or false (yes, no, on, off)")
    return value


Whole = Annotated[int, BeforeValidator(no_truth)]
Number = Annotated[float, BeforeValidator(no_truth)]

Count = Annotated[Whole, Field(ge=1, le=10**12)]
CountOrNone = Annotated[Whole, Field(ge=0, le=10**12)]
"""0 is none, or never."""
Width = Annotated[Whole, Field(ge=1, le=2**15)]
Seed = Annotated[Whole, Field(ge=0, le=2**63 - 1)]
Seconds = Annotated[Number, Field(ge=0, le=10**9)]

Probability = Annotated[Number, Field(ge=0, le=1)]
Decay = Annotated[Number, Field(ge=0, lt=1)]
Strength = Annotated[Number, Field(ge=0, le=1)]
"""Of a change of colour: up to a factor between 1 - strength and 1 + strength."""
Temperature = Annotated[Number, Field(ge=1e-3, le=1e3)]
LearningRate = Annotated[Number, Field(ge=0, le=10)]
PeakRate = Annotated[Number, Field(ge=1e-12, le=10)]

LogMean = Annotated[Number, Field(ge=-10, le=10)]
LogStd = Annotated[Number, Field(gt=0, le=5)]
"""With a mean of at most 10, levels whose squares float32 still holds."""
Level = Annotated[Number, Field(ge=0, le=1e6)]
"""A noise level."""
Levels = Annotated[Whole, Field(ge=1, le=10**6)]
"""How many noise levels a grid has."""

Area = Annotated[Number, Field(ge=1e-4, le=1)]
"""Of a crop, relative to the image."""
BlurSigma = Annotated[Number, Field(ge=0.01, le=100)]
"""Of a blur, in pixels."""
Zoom = Annotated[Number, Field(ge=0.05, le=20)]
