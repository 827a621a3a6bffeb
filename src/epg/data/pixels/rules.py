"""What a person may decide about pixels: background, range, scaling."""

from dataclasses import dataclass, fields

import numpy as np
from PIL import ImageColor

from epg.data.pixels.deep import Range
from epg.data.pixels.resize import Resize
from epg.errors import UserError


@dataclass(frozen=True, kw_only=True)
class PixelRules:
    """What is done where a file leaves open how it looks in 8 bits."""

    background: str = "white"
    """Colour (name or #rrggbb) behind transparent pixels; "none" ignores what the file says is transparency."""
    range: Range | None = None
    """Which values of more than 8 bits are black and white; None: 0 and the largest that the format has."""
    resize: Resize = "adm"
    """"adm" rounds after every halving, as ADM; "exact" once."""


RULES = PixelRules()


def check_rules(rules: PixelRules, prefix: str = "--") -> None:
    """Raises UserError for a background that is no colour, or a range that is none."""
    try:
        if rules.background != "none":
            ImageColor.getrgb(rules.background)
    except ValueError:
        raise UserError(
            f"{prefix}background {rules.background}: no colour; give a name such as white, #rrggbb, or none to ignore "
            "transparency"
        ) from None
    if rules.range is not None and not (np.isfinite(rules.range).all() and rules.range[0] < rules.range[1]):
        low, high = rules.range
        raise UserError(f"{prefix}range {low:g} {high:g}: the value of black must be below that of white")


def changed_rules(rules: PixelRules) -> list[str]:
    """What a fingerprint must know of rules; nothing for the usual ones."""
    names = [item.name for item in fields(PixelRules)]
    return [f"{name} {getattr(rules, name)}" for name in names if getattr(rules, name) != getattr(RULES, name)]
