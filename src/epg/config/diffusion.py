"""Settings of the diffusion stage: what its network predicts, which levels it sees, and how much each counts."""

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from epg.config.objective import Beginning, ObjectiveConfig, Parameterization, Passes, Work
from epg.config.ranges import Count, LogMean, LogStd, Number, Probability, Whole

Density = Literal["lognormal", "uniform_t"]
Weighting = Literal["paper", "v", "edm", "min_snr", "sigmoid"]


class DiffusionConfig(ObjectiveConfig):
    samples = True
    title = "An image diffusion model that works on pixels, without a VAE (EPG)"
    without_encoder: ClassVar[str] = "--objective.alignment-weight 0"

    kind: Literal["diffusion"] = "diffusion"
    initial: Beginning = "online"
    """Which encoder of a pre-training run the generator begins with: the trained one, or its momentum average.
    `random`: it begins without one, which then serves the alignment alone."""
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
    alignment_weight: Annotated[Number, Field(ge=0, le=1e4)] = 0.0
    """Of a loss that draws the patch tokens of an encoder block to those of the frozen encoder on the clean image
    (REPA; 0.5 there, beside a loss near 1); 0 needs no such encoder."""
    alignment_block: Count | None = None
    """Which block of the generator's encoder is drawn, 1 being the first; none is the last."""
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

    @property
    def aligned(self) -> bool:
        return self.alignment_weight > 0

    @property
    def frozen_encoder(self) -> bool:
        return self.aligned

    @property
    def work(self) -> Work:
        """One trained pass; with alignment the frozen encoder on the clean image, without gradient."""
        frozen = int(self.frozen_encoder)
        return Work(Passes(generator=3, encoder=frozen), kept=Passes(generator=1), still=Passes(encoder=frozen))

    def problems(self) -> Iterator[str]:
        if self.initial == "random" and not self.frozen_encoder:
            yield "--objective.initial random: leaves --encoder without use; pass --from-scratch instead of both"

    def gaussians(self, num_classes: int) -> int:
        return 1 + num_classes * (self.spectrum == "class") if self.parameterization == "spectral" else 0
