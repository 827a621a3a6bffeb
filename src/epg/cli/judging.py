"""Options of every verb that compares images by their features."""

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import tyro

from epg.cli.named import Existing
from epg.cli.numbers import Images
from epg.evaluation.measures import METRICS

if TYPE_CHECKING:
    from epg.evaluation.jury import Options

Metrics = Annotated[tuple[str, ...], tyro.conf.arg(metavar=f"{{{','.join(METRICS)}}}")]


@dataclass(frozen=True, kw_only=True)
class Judging:
    """What images are compared in; verbs add their own."""

    RARE: ClassVar[frozenset[str]] = frozenset({"inception"})

    features: tuple[str, ...] = ()
    """inception, efficientnet (extra eval-offline), classifier (trained on the labelled reference), encoder=RUN, random
    (a network with random weights), dinov2, clip (both also with =FOLDER). If not given, what needs no download; of
    `epg reference`, inception."""
    inception: Existing | None = None
    """File with Inception's weights, instead of the cache (EPG_CACHE) or a download."""

    def options(self) -> "Options":
        """These options, and those of a verb's own that go by the same names, as `epg.evaluation` takes them."""
        from epg.evaluation.jury import Options

        given = vars(self)
        pixels = {name: given[name] for name in ("background", "range", "resize") if given.get(name) is not None}
        return Options(**{f.name: given[f.name] for f in dataclasses.fields(Options) if f.name in given}, pixels=pixels)


@dataclass(frozen=True, kw_only=True)
class Against(Judging):
    """How a data set is read that samples are compared with."""

    RARE: ClassVar[frozenset[str]] = frozenset({"background", "kept", "range", "resize"})

    split: str | None = None
    """Of a data set as reference: train, test, validation or val; train, or the only one of a prepared set, if not
    given."""
    kept: Images = 10_000
    """Its images, chosen at random, that precision, recall, density, coverage and KID use."""
    background: str | None = None
    """Of one that is not prepared, as range and resize: see `epg prepare`. If not given, as in training."""
    range: tuple[float, float] | None = None
    resize: Literal["adm", "exact"] | None = None
