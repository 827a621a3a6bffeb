"""What the rest of the program must know of an objective beforehand, by its settings alone.

The kinds themselves are in `epg.config.objectives`. Nothing here needs torch, so that flags and recipes are read fast.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, Literal, NamedTuple, Self

from pydantic import ModelWrapValidatorHandler, model_validator
from pydantic_core import PydanticCustomError

from epg.config.sections import Section

Stage = str
"""The kind of an objective, which is what a stage of a recipe and its run folder are called."""
Parameterization = Literal["x", "edm", "spectral"]
"""What a generator's network predicts, see `epg.denoiser`."""
Beginning = Literal["online", "momentum", "random"]


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
    continues: ClassVar[bool] = False
    """Whether it goes on from a trained generator (`--from`), and never from random weights."""
    sampler: ClassVar[str] = "heun"
    """The sampler of a recipe that names none."""
    without_encoder: ClassVar[str] = ""
    """The setting that does without the loss that needs a frozen encoder, where it may be left out."""
    judged: ClassVar[bool] = False
    """Whether it is evaluated while it trains unless told otherwise, as its own loss says little of the images."""

    kind: str

    @property
    def predicts(self) -> Parameterization | None:
        """The parameterisation of a generator; None of an encoder."""
        return None

    @property
    def contrastive(self) -> bool:
        """Whether a loss compares the images of a pass with each other, or takes their moments."""
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

    @property
    def begins(self) -> Beginning:
        """With which weights of `--encoder` the trained encoder begins: the setting `initial`, where there is one."""
        return getattr(self, "initial", "online")

    def from_scratch(self) -> Self:
        """The settings of a run that starts without an encoder of stage 1."""
        return self

    def scaled(self, factor: float) -> Self:
        """The settings of a run of `factor` times as many steps."""
        return self

    def gaussians(self, num_classes: int) -> int:
        """Of the network's `spectrum`: one for each class and one for all images, that one alone, or none."""
        return 0

    @property
    def aligned(self) -> bool:
        """Whether a head predicts the frozen encoder's tokens from the generator's, see `epg.objectives.alignment`."""
        return False

    @property
    def internal(self) -> bool:
        """Whether the generator has a head on its encoder, for internal guidance."""
        return False

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


KINDS: dict[Stage, type[ObjectiveConfig]] = {}
"""Every objective, in the order of the stages; `epg.config.objectives` fills it."""
