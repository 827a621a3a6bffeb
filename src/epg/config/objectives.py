"""What is trained: the settings of every objective, and what the rest of the program must know of one beforehand.

`KINDS` is the registry. An objective is a kind here and a module of the same name in `epg.objectives`, see
CONTRIBUTING.md. Nothing in this file needs torch, so that flags and recipes are read fast.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import Field, ModelWrapValidatorHandler, model_validator
from pydantic_core import PydanticCustomError

from epg.config.ranges import (
    Count,
    Decay,
    Levels,
    LogMean,
    LogStd,
    Number,
    Probability,
    Temperature,
    Whole,
)
from epg.config.sections import Section
from epg.config.views import AffineViewsConfig, MocoViewsConfig

Stage = str
"""The kind of an objective, which is what a stage of a recipe and its run folder are called."""
Parameterization = Literal["x", "edm", "spectral"]
"""What a generator's network predicts, see `epg.denoiser`."""
RISING = ("crop_scale", "blur_sigma")


class Passes(NamedTuple):
    """A number for each network."""

    encoder: int = 0
    projector: int = 0
    generator: int = 0


class Work(NamedTuple):
    """What a step does with one image."""

    spent: Passes
    """Forward passes that it costs. What is trained counts three times (the backward pass takes the gradient by the
    input and by the weight), a frozen network that only passes a gradient on twice, a target without gradient once."""
    kept: Passes
    """Passes whose activations wait in memory for the backward pass."""
    still: Passes = Passes()
    """Networks in memory that are not trained themselves."""


class ObjectiveConfig(Section):
    """Settings of one objective. Validating plain data by this class gives the one that its `kind` names."""

    title: ClassVar[str]
    """What the trained weights are, for their card."""
    samples: ClassVar[bool]
    """Whether a generator (an EPG) is trained, not an encoder (an RCM)."""
    sampler: ClassVar[str] = "heun"
    """The sampler of a recipe that names none."""

    kind: str

    @property
    def predicts(self) -> Parameterization | None:
        """The parameterisation of a generator; None of an encoder."""
        return None

    @property
    def contrastive(self) -> bool:
        """Whether a loss compares the images of a pass with each other."""
        return False

    @property
    def frozen_encoder(self) -> bool:
        """Whether a loss needs the encoder of stage 1 as it was."""
        return False

    @property
    def work(self) -> Work:
        """One trained pass, unless the objective says otherwise."""
        if self.samples:
            return Work(spent=Passes(generator=3), kept=Passes(generator=1))
        return Work(spent=Passes(encoder=3), kept=Passes(encoder=1))

    def from_scratch(self) -> Self:
        """The settings of a run that starts without an encoder of stage 1."""
        return self

    def scaled(self, factor: float) -> Self:
        """The settings of a run of `factor` times as many steps."""
        return self

    def gaussians(self, num_classes: int) -> int:
        """Of the network's `spectrum`: one for each class and one for all images, that one alone, or none."""
        return 0

    def problems(self) -> Iterator[str]:
        """Settings that do not go with each other, each with the flag and the cure."""
        yield from ()

    @classmethod
    def kinds(cls) -> Iterable[type[Section]]:
        return KINDS.values() if cls is ObjectiveConfig else [cls]

    @model_validator(mode="wrap")
    @classmethod
    def of_its_kind(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Any:
        if cls is not ObjectiveConfig or not isinstance(value, Mapping):
            return handler(value)
        kind = value.get("kind")
        if not isinstance(kind, str) or kind not in KINDS:
            told = {"kind": repr(kind)[:40], "kinds": ", ".join(KINDS)}
            raise PydanticCustomError("kind", "there is no kind {kind}; choose one of {kinds}", told)
        return KINDS[kind].model_validate(value)


class PretrainingConfig(ObjectiveConfig):
    samples = False
    title = "A ViT encoder pre-trained by self-supervision on clean and noisy images (RCM)"

    kind: Literal["pretraining"] = "pretraining"
    contrastive_temperature: Temperature = 0.2
    tau1: Temperature = 0.1
    """Temperature of the representation-consistency loss at sigma_min."""
    tau2: Temperature = 0.2
    """Its temperature at sigma_max when training starts; set to tau1 for the constant-temperature baseline."""
    momentum: Probability = 0.99
    """EMA decay of the momentum encoder, the target of the contrastive loss."""
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
        """Three passes of the trained encoder (two views, noisy image), one as target, two of the momentum encoder; two
        trained and two momentum projections."""
        spent = Passes(encoder=3 * 3 + 1 + 2, projector=2 * 3 + 2)
        return Work(spent, kept=Passes(encoder=3, projector=2), still=Passes(encoder=1, projector=1))

    def problems(self) -> Iterator[str]:
        if self.s1 < self.s0:
            yield f"--objective.s1 {self.s1}: must be at least --objective.s0 {self.s0}"
        views = self.views
        pairs = {"scale": views.scale} if views.kind == "affine" else {n: getattr(views, n) for n in RISING}
        for name, (low, high) in pairs.items():
            if low > high:
                flag = f"--objective.views.{name.replace('_', '-')}"
                yield f"{flag} {low:g} {high:g}: the first must not exceed the second"


class DiffusionConfig(ObjectiveConfig):
    samples = True
    title = "An image diffusion model that works on pixels, without a VAE (EPG)"

    kind: Literal["diffusion"] = "diffusion"
    parameterization: Literal["x", "spectral"] = "x"
    """`x`: the network predicts the clean image. `spectral`: it corrects the best linear denoiser of the training
    images by frequency, weighted by what that leaves unknown; mean 0 and std 1.4 suit it."""
    spectrum: Literal["class", "global"] = "class"
    """Of `spectral`: statistics of every class (and of all images), or only of all images."""
    mean: LogMean = -1.2
    std: LogStd = 1.6
    """ln t ~ N(mean, std^2)."""
    levels: Annotated[Whole, Field(ge=2, le=10**6)] = 1280
    """The grid that drawn levels are rounded to."""
    label_dropout: Probability = 0.1
    """Probability of training a sample without its label, for guidance."""
    flip: bool = True
    """Flip images horizontally half of the time."""

    @property
    def predicts(self) -> Parameterization:
        return self.parameterization

    def gaussians(self, num_classes: int) -> int:
        if self.parameterization != "spectral":
            return 0
        return 1 + num_classes * (self.spectrum == "class")


class ConsistencyConfig(ObjectiveConfig):
    samples = True
    title = "A one-step image generator (consistency model) that works on pixels, without a VAE (EPG)"
    sampler = "one_step"

    kind: Literal["consistency"] = "consistency"
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
    auxiliary_weight: Annotated[Number, Field(ge=0, le=1e4)] = 1.0
    """Weight of the auxiliary loss from the frozen pre-trained encoder; 0 needs no encoder."""
    auxiliary_temperature: Temperature = 0.1
    dropout: Decay = 0.5
    """After the attention of each decoder block; online and target pass share the mask."""
    flip: bool = True
    """Flip images horizontally half of the time."""

    @property
    def predicts(self) -> Parameterization:
        return "edm"

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
        return self.model_copy(update={"auxiliary_weight": 0.0})

    def scaled(self, factor: float) -> "ConsistencyConfig":
        return self if self.d is None else self.model_copy(update={"d": max(1, round(self.d * factor))})


KINDS: dict[Stage, type[ObjectiveConfig]] = {
    "pretraining": PretrainingConfig,
    "diffusion": DiffusionConfig,
    "consistency": ConsistencyConfig,
}
"""Every objective, in the order of the stages."""
