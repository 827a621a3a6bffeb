"""Options that are numbers: the range stands at the option, and all that lie outside are named before any work."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Annotated, Any, get_type_hints

from epg.cli.paths import pieces
from epg.errors import UserError, shortened


@dataclasses.dataclass(frozen=True)
class Between:
    """From `low` to `high`, both included unless `open_low`."""

    low: float
    high: float
    open_low: bool = False

    def __contains__(self, value: float) -> bool:
        return math.isfinite(value) and self.low <= value <= self.high and not (self.open_low and value == self.low)

    @property
    def words(self) -> str:
        """What is wrong with a number that is not in it."""
        lowest = f"more than {self.low:g}" if self.open_low else f"at least {self.low:,g}"
        return f"must be {lowest} and at most {self.high:,g}"


Images = Annotated[int, Between(1, 10**8)]
"""How many are drawn, or chosen."""
Compared = Annotated[int, Between(2, 10**8)]
"""How many are drawn or chosen for a statistic with a spread."""
BatchSize = Annotated[int, Between(1, 10**6)]
Seed = Annotated[int, Between(0, 2**63 - 1)]
Side = Annotated[int, Between(1, 4096)]
"""Of an image, in pixels."""
Workers = Annotated[int, Between(0, 1024)]
Decay = Annotated[float, Between(0, 1)]
"""Of an average; 0 is the weights as trained."""
Level = Annotated[float, Between(0, 10**6, open_low=True)]
"""A noise level."""


def in_range(verb: Any) -> Any:
    """The same verb. Raises UserError listing the options whose numbers lie outside their ranges."""
    if wrong := list(outside(verb)):
        raise UserError("\n".join(wrong))
    return verb


def outside(verb: Any) -> Iterator[str]:
    """A line for each."""
    for name, kind in get_type_hints(type(verb), include_extras=True).items():
        bounds = next((part for part in pieces(kind) if isinstance(part, Between)), None)
        value = getattr(verb, name, None)
        if bounds is None or value is None:
            continue
        for number in value if isinstance(value, tuple) else (value,):
            if number not in bounds:
                yield f"--{name.replace('_', '-')} {shortened(f'{number}', 30)}: {bounds.words}"
