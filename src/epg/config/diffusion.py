"""Settings of the diffusion stage: what its network predicts, which levels it sees, and how much each counts."""

from typing import Annotated, Literal

from pydantic import Field

from epg.config.objective import ObjectiveConfig, Parameterization
from epg.config.ranges import LogMean, LogStd, Number, Probability, Whole

Density = Literal["lognormal", "uniform_t"]
Weighting = Literal["paper", "v", "edm", "min_snr", "sigmoid"]


class DiffusionConfig(ObjectiveConfig):
    samples = True
    title = "An image diffusion model that works on pixels, without a VAE (EPG)"

    kind: Literal["diffusion"] = "diffusion"
    initial: Literal["online", "momentum"] = "online"
    """Which encoder of a pre-training run the generator begins with: the trained one, or its momentum average."""
    parameterization: Parameterization = "x"
    """`x`: the network predicts the clean image. `edm`: EDM's mixture of image and noise, which a consistency model
    has too. `spectral`: it corrects the best linear denoiser of the training images by frequency; mean 0 and std 1.4
    suit it."""
    spectrum: Literal["class", "global"] = "class"
    """Of `spectral`: statistics of every class (and of all images), or only of all images."""
    density: Density = "lognormal"
    """Of the levels t: `lognormal`, ln t ~ N(mean, std^2), or `uniform_t`, uniform in the time of flow matching."""
    mean: LogMean = -1.2
    std: LogStd = 1.6
    """ln t ~ N(mean, std^2), in unshifted levels."""
    rounding: bool = True
    """Round drawn levels to a grid; otherwise they are taken as drawn, between its ends."""
    levels: Annotated[Whole, Field(ge=2, le=10**6)] = 1280
    """Of the grid that drawn levels are rounded to, and whose distances are the paper's weight."""
    weighting: Weighting | None = None
    """How much a level counts, see `epg.weighting`; none is `paper` for x, and what gives the network an error of one
    for the others. Apart from spectral's own, all are scaled to the mean of the paper's."""
    sigmoid_bias: Annotated[Number, Field(ge=-20, le=20)] = 0.0
    """Of the weighting `sigmoid`: the logarithm of the signal-to-noise ratio at which it falls to a half."""
    internal_weight: Annotated[Number, Field(ge=0, le=1e4)] = 0.0
    """Of the loss of a second prediction, by a linear head on the encoder's tokens, for internal guidance (0.5 as
    published); 0 has no such head."""
    label_dropout: Probability = 0.1
    """Probability of training a sample without its label, for guidance."""
    flip: bool = True
    """Flip images horizontally half of the time."""

    @property
    def predicts(self) -> Parameterization:
        return self.parameterization

    @property
    def internal(self) -> bool:
        return self.internal_weight > 0

    def gaussians(self, num_classes: int) -> int:
        return 1 + num_classes * (self.spectrum == "class") if self.parameterization == "spectral" else 0
