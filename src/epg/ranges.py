"""The numbers that settings may be. A type says its range; beyond it a number is without meaning, or a slip of the
finger with which no run would work."""

from typing import Annotated

from pydantic import Field

Count = Annotated[int, Field(ge=1, le=10**12)]
CountOrNone = Annotated[int, Field(ge=0, le=10**12)]
"""0 is none, or never."""
Width = Annotated[int, Field(ge=1, le=2**15)]
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
Seconds = Annotated[float, Field(ge=0, le=10**9)]

Probability = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Strength = Annotated[float, Field(ge=0, le=1)]
"""Of a change of colour: up to a factor between 1 - strength and 1 + strength."""
Temperature = Annotated[float, Field(ge=1e-3, le=1e3)]
LearningRate = Annotated[float, Field(ge=0, le=10)]
PeakRate = Annotated[float, Field(ge=1e-12, le=10)]

LogMean = Annotated[float, Field(ge=-10, le=10)]
LogStd = Annotated[float, Field(gt=0, le=5)]
"""With a mean of at most 10, levels whose squares float32 still holds."""
Level = Annotated[float, Field(ge=0, le=1e6)]
"""A noise level."""
Levels = Annotated[int, Field(ge=1, le=10**6)]
"""How many noise levels a grid has."""

Area = Annotated[float, Field(ge=1e-4, le=1)]
"""Of a crop, relative to the image."""
BlurSigma = Annotated[float, Field(ge=0.01, le=100)]
"""Of a blur, in pixels."""
Zoom = Annotated[float, Field(ge=0.05, le=20)]
