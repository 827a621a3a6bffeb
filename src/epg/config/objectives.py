"""What is trained: the settings of every objective.

`KINDS` is the registry. An objective is a kind here and a module of the same name in `epg.objectives`, see
CONTRIBUTING.md. Nothing in this file needs torch, so that flags and recipes are read fast.
"""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from epg.config.diffusion import DiffusionConfig as DiffusionConfig
from epg.config.objective import KINDS as KINDS
from epg.config.objective import Beginning
from epg.config.objective import ObjectiveConfig as ObjectiveConfig
from epg.config.objective import Parameterization as Parameterization
from epg.config.objective import Passes as Passes
from epg.config.objective import Stage as Stage
from epg.config.objective import Work as Work
from epg.config.ranges import (
    Count,
    CountOrNone,
    Decay,
    Level,
    Levels,
    LogMean,
    LogStd,
    Number,
    Probability,
    Temperature,
    Whole,
)
from epg.config.views import AffineViewsConfig, MocoViewsConfig

LossWeight = Annotated[Number, Field(ge=0, le=1e4)]
RISING = ("crop_scale", "blur_sigma")


class PretrainingConfig(ObjectiveConfig):
    samples = False
    title = "A ViT encoder pre-trained by self-supervision on clean and noisy images (RCM)"

    kind: Literal["pretraining"] = "pretraining"
    contrastive_weight: LossWeight = 1.0
    """Weight of the contrastive loss between the views; 0 leaves it out."""
    consistency_weight: LossWeight = 1.0
    """Weight of the representation-consistency loss; 0 leaves it out: contrastive learning on clean images alone."""
    contrastive_temperature: Temperature = 0.2
    tau1: Temperature = 0.1
    """Temperature of the representation-consistency loss at sigma_min."""
    tau2: Temperature = 0.2
    """Its temperature at sigma_max when training starts; set to tau1 for the constant-temperature baseline."""
    momentum: Probability = 0.99
    """EMA decay of the momentum encoder, the target of the contrastive loss."""
    momentum_end: Probability | None = None
    """The decay at the end of training, annealed as in rRCM (there from 0.99 to 0.9999); none keeps it constant."""
    s0: Levels = 20
    s1: Levels = 1280
    """N(k) doubles from s0 to s1 over training."""
    flip: bool = True
    """Flip the plain image horizontally half of the time."""
    views: Annotated[MocoViewsConfig | AffineViewsConfig, Field(discriminator="kind")] = MocoViewsConfig()

    @property
    def contrastive(self) -> bool:
        return True

    @property
    def work(self) -> Work:
        """Of the views two passes of the trained and of the momentum encoder with their projections; of the noisy image
        one trained pass and one as target."""
        views, noisy = 2 * bool(self.contrastive_weight), int(bool(self.consistency_weight))
        spent = Passes(encoder=(3 + 1) * views + (3 + 1) * noisy, projector=(3 + 1) * views)
        return Work(spent, kept=Passes(views + noisy, projector=views), still=Passes(encoder=1, projector=1))

    def problems(self) -> Iterator[str]:
        if not self.contrastive_weight and not self.consistency_weight:
            yield "--objective.contrastive-weight 0: leaves no loss with --objective.consistency-weight 0"
        if self.s1 < self.s0:
            yield f"--objective.s1 {self.s1}: must be at least --objective.s0 {self.s0}"
        views = self.views
        pairs = {"scale": views.scale} if views.kind == "affine" else {n: getattr(views, n) for n in RISING}
        for name, (low, high) in pairs.items():
            if low > high:
                flag = f"--objective.views.{name.replace('_', '-')}"
                yield f"{flag} {low:g} {high:g}: the first must not exceed the second"


class ConsistencyConfig(ObjectiveConfig):
    samples = True
    title = "A one-step image generator (consistency model) that works on pixels, without a VAE (EPG)"
    sampler = "one_step"
    without_encoder = "--objective.auxiliary-weight 0"

    kind: Literal["consistency"] = "consistency"
    initial: Beginning = "online"
    """Which encoder of a pre-training run is taken: the trained one, or its momentum average. `random`: the generator
    begins without one, which then serves the auxiliary loss alone."""
    mean: LogMean = -0.4
    std: LogStd = 1.6
    """ln t ~ N(mean, std^2)."""
    q: Annotated[Number, Field(gt=1, le=1e3)] = 2.0
    k: Annotated[Number, Field(ge=0, le=1e3)] = 8.0
    b: Annotated[Number, Field(ge=0, le=1e3)] = 1.0
    """r(t) = t (1 - (1 + k sigmoid(-b t)) / q^stage)."""
    delta: Annotated[Whole, Field(ge=1, le=1000)] = 1
    d: Count | None = None
    """stage = delta + step // d; none is a seventh of the steps, the paper's 100,000 of 700,000. The last stage is the
    one whose t - r the precision of training still resolves: 7 in bf16, 10 in fp16, 23 in fp32."""
    c: Annotated[Number, Field(ge=1e-6, le=1e3)] = 0.06
    """Softening constant of the distance."""
    auxiliary_weight: LossWeight = 1.0
    """Weight of the auxiliary loss from the frozen pre-trained encoder; 0 needs no encoder."""
    auxiliary_temperature: Temperature = 0.1
    dropout: Decay = 0.5
    """After the attention of each decoder block; online and target pass share the mask."""
    flip: bool = True
    """Flip images horizontally half of the time."""

    @property
    def predicts(self) -> Parameterization:
        return "edm"

    def problems(self) -> Iterator[str]:
        if self.initial == "random" and not self.frozen_encoder:
            yield "--objective.initial random: leaves --encoder without use; pass --from-scratch instead of both"

    @property
    def contrastive(self) -> bool:
        return self.frozen_encoder

    @property
    def frozen_encoder(self) -> bool:
        return self.auxiliary_weight > 0

    @property
    def work(self) -> Work:
        """One trained pass and one as target; with the auxiliary loss the frozen encoder forward on the clean and
        forward and back on the denoised image."""
        frozen = int(self.frozen_encoder)
        spent = Passes(generator=3 + 1, encoder=(1 + 2) * frozen)
        return Work(spent, kept=Passes(generator=1, encoder=frozen), still=Passes(encoder=frozen))

    def from_scratch(self) -> "ConsistencyConfig":
        return self.model_copy(update={"auxiliary_weight": 0.0, "initial": "online"})

    def scaled(self, factor: float) -> "ConsistencyConfig":
        return self if self.d is None else self.model_copy(update={"d": max(1, round(self.d * factor))})


class OneStepConfig(ObjectiveConfig):
    samples = True
    title = "A one-step image generator, tuned to the moments of features, that works on pixels, without a VAE (EPG)"
    continues = True
    sampler = "one_step"
    judged = True

    kind: Literal["onestep"] = "onestep"
    parameterization: Parameterization = "x"
    """That of the generator it starts from (`--from`): `edm` of a consistency model."""
    spectrum: Literal["class", "global"] = "class"
    """Of `spectral`: that of the generator it starts from."""
    levels: Annotated[tuple[Level, ...], Field(min_length=1, max_length=16)] = (0.1, 0.5, 2.0)
    """Unshifted noise levels at which the encoder of stage 1 looks at images, each at one of them."""
    pixels: CountOrNone = 8
    """Images shrunk to this side are compared too; 0 leaves them out."""
    covariance: Literal["shared", "class"] = "shared"
    """Every class has its own mean features; all share a covariance, or each has its own (`class`: for few classes, of
    which a batch holds many images)."""
    recognition_weight: Annotated[Number, Field(ge=0, le=1e3)] = 0.0
    """Of -log p(label | features), by the linear discriminant of the real images' features: images are to be told as
    their class."""
    decay: Decay = 0.99
    """Of the running moments of generated images."""
    c: Annotated[Number, Field(ge=0, le=1e6)] = 0.01
    """A distance L is minimised as L / (L + c), with the gradient of its numerator: relative above c, plain below."""
    flip: bool = True
    """Flip the real images horizontally half of the time when their moments are measured."""

    @property
    def predicts(self) -> Parameterization:
        return self.parameterization

    @property
    def contrastive(self) -> bool:
        return True

    @property
    def frozen_encoder(self) -> bool:
        return True

    @property
    def work(self) -> Work:
        """One trained pass of the generator; the frozen encoder forward and back."""
        return Work(Passes(generator=3, encoder=2), kept=Passes(generator=1, encoder=1), still=Passes(encoder=1))

    def gaussians(self, num_classes: int) -> int:
        return 1 + num_classes * (self.spectrum == "class") if self.parameterization == "spectral" else 0


KINDS.update(
    pretraining=PretrainingConfig,
    diffusion=DiffusionConfig,
    consistency=ConsistencyConfig,
    onestep=OneStepConfig,
)
