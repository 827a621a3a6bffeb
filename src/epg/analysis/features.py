"""What an encoder makes of images under noise: its patch tokens as colours (figures 5 and 6 of the paper), and how its
CLS features spread over images (figure 8).

Colours are the first three principal components of all patch tokens of an encoder, of every image at every level
together: within one encoder, patches of one colour are alike at whatever noise. Encoders have spaces of their own, so
between two of them structure may be compared, not colour.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from epg.evaluation.noisy_features import NoisyEncoder
from epg.evaluation.voting import Split
from epg.objectives.diagnostics import channel_std

Numbers = NDArray[np.float64]
Colours = NDArray[np.uint8]
COMPONENTS = 3
SHOWN_RANGE = (1, 99)  # percentiles of a component that become darkest and brightest
MOST_CHANNELS = (10, 90)  # percentiles of the channels' deviations, drawn as a band


@dataclass(frozen=True)
class Spread:
    """Over the images at one unshifted level, of the normalised CLS features: standard deviations of the channels
    relative to 1 / sqrt(D). 1 where features spread over the whole sphere, 0 where all are the same."""

    level: float
    mean: float
    """Over channels: what the log of stage 1 calls `feature_std`."""
    low: float
    high: float
    """Percentiles 10 and 90 of the channels."""
    like_clean: float
    """Mean cosine of a patch token and that of the same patch at the lowest level, both without the overall mean."""


@dataclass(frozen=True)
class Features:
    """One encoder on images at several levels, lowest first."""

    name: str
    spread: list[Spread]
    colours: Colours
    """Of the images shown: (levels, N, S, S, 3)."""
    explained: list[float]
    """Share of the tokens' variance in each of the three components."""

    def record(self) -> dict[str, Any]:
        """The numbers, as JSON."""
        return {"name": self.name, "explained": self.explained, "levels": [vars(spread) for spread in self.spread]}


def measure(encoder: NoisyEncoder, name: str, images: Split, shown: Split, levels: Sequence[float]) -> Features:
    """Features of an encoder: the spread over `images`, the colours of `shown`; `levels` are unshifted and rise."""
    tokens = np.stack([encoder.patches(shown.images, shown.noise, level) for level in levels]).astype(np.float64)
    colours, explained = coloured(tokens)
    alike = like_first(tokens)
    spread = []
    for level, similarity in zip(levels, alike, strict=True):
        cls = torch.from_numpy(encoder.features(images.images, images.noise, level))
        channels = (channel_std(cls) * cls.shape[1] ** 0.5).numpy()
        low, high = np.percentile(channels, MOST_CHANNELS)
        spread.append(Spread(level, float(channels.mean()), float(low), float(high), float(similarity)))
    return Features(name, spread, colours, explained)


def coloured(tokens: Numbers) -> tuple[Colours, list[float]]:
    """Tokens (..., D) as red, green and blue: their first three principal components, and the share of each.

    The largest entry of a component is positive, which makes its sign no matter of chance. A component is stretched
    from its 1st percentile to its 99th.
    """
    flat = tokens.reshape(-1, tokens.shape[-1])
    centred = flat - flat.mean(0)
    values, vectors = np.linalg.eigh(centred.T @ centred)  # rising
    axes = vectors[:, ::-1][:, :COMPONENTS]
    axes = axes * np.sign(axes[np.abs(axes).argmax(0), range(axes.shape[1])])
    projected = centred @ axes
    low, high = np.percentile(projected, SHOWN_RANGE, axis=0)
    unit = ((projected - low) / np.where(high > low, high - low, 1)).clip(0, 1)
    shares = values[::-1][:COMPONENTS] / max(values.sum(), np.finfo(float).tiny)
    return (255 * unit).round().astype(np.uint8).reshape(*tokens.shape[:-1], -1), shares.tolist()


def like_first(tokens: Numbers) -> Numbers:
    """Mean cosine of tokens (L, ..., D) and those of the first level, without the mean of all; (L,)."""
    centred = tokens - tokens.reshape(-1, tokens.shape[-1]).mean(0)
    unit = centred / np.maximum(np.linalg.norm(centred, axis=-1, keepdims=True), np.finfo(float).tiny)
    return (unit * unit[0]).sum(-1).reshape(len(tokens), -1).mean(1)
