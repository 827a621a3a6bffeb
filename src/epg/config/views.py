"""Settings of the views that the contrastive loss of pre-training compares."""

from typing import Annotated, Literal

from pydantic import Field

from epg.config.ranges import Area, BlurSigma, Number, Probability, Strength, Zoom
from epg.config.sections import Section


class MocoViewsConfig(Section):
    kind: Literal["moco_v3"] = "moco_v3"
    crop_scale: tuple[Area, Area] = (0.08, 1.0)
    """Area of the random crop relative to the image."""
    flip: Probability = 0.5
    jitter: tuple[Strength, Strength, Strength, Annotated[Number, Field(ge=0, le=0.5)]] = (0.4, 0.4, 0.2, 0.1)
    """Brightness, contrast, saturation, hue."""
    jitter_prob: Probability = 0.8
    gray: Probability = 0.2
    blur_sigma: tuple[BlurSigma, BlurSigma] = (0.1, 2.0)
    """In pixels."""
    blur_prob: tuple[Probability, Probability] = (1.0, 0.1)
    """Of the first and of the second view."""
    solarize_prob: tuple[Probability, Probability] = (0.0, 0.2)
    """Of the first and of the second view."""


class AffineViewsConfig(Section):
    kind: Literal["affine"] = "affine"
    degrees: Annotated[Number, Field(ge=0, le=180)] = 15.0
    translate: Probability = 0.1
    """Largest shift as a fraction of the side."""
    scale: tuple[Zoom, Zoom] = (0.85, 1.15)
    brightness: Strength = 0.2
    contrast: Strength = 0.2
