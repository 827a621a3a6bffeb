"""What decoding did to the images of a set, counted, so that nobody has to find out from the samples."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from epg.data.decode import Origin
from epg.data.rules import PixelRules

HALF = 2**15  # of the values of 16 bits
QUARTER = 2**14


@dataclass
class Seen:
    """Counts over images; `first` names one image of every count."""

    images: int = 0
    enlarged: int = 0
    """Smaller than the size asked for."""
    cropped: int = 0
    """Not square: only the centre is trained on."""
    cut: float = 0.0
    """The largest part of its area that an image lost so."""
    rotated: int = 0
    """Turned upright by EXIF."""
    composited: int = 0
    """Partly transparent, put on the background."""
    converted: int = 0
    """From an embedded colour profile to sRGB."""
    unread_profiles: int = 0
    """With a profile that is broken, or of another kind of image; taken as sRGB."""
    other_colours: int = 0
    """Not sRGB by a claim that is not followed (PNG's cICP, gAMA, cHRM; EXIF's Adobe RGB); taken as sRGB."""
    deep: int = 0
    """Of more than 8 bits."""
    low: float | None = None
    """The smallest value of all deep images."""
    high: float | None = None
    white: int | None = None
    """The largest value that the deepest format has; None where it is unknown."""
    first: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, origin: Origin, *, image_size: int) -> None:
        """Count one image."""
        self.images += 1
        found = {
            "enlarged": min(origin.width, origin.height) < image_size,
            "cropped": origin.width != origin.height,
            "rotated": origin.rotated,
            "composited": origin.transparent,
            "converted": origin.profile == "converted",
            "unread_profiles": origin.profile == "unread",
            "other_colours": origin.other_colours,
            "deep": origin.depth is not None,
        }
        for key in (key for key, value in found.items() if value):
            setattr(self, key, getattr(self, key) + 1)
            self.first.setdefault(key, name)
        self.cut = max(self.cut, 1 - min(origin.width, origin.height) / max(origin.width, origin.height))
        if origin.depth is not None:
            self._widen(origin.depth.low, origin.depth.high, origin.depth.kind.white)

    def merge(self, other: "Seen") -> None:
        """Add the counts of another part of the set, later in order."""
        for item in fields(self):
            if isinstance(getattr(other, item.name), int) and item.name not in ("low", "high", "white", "cut"):
                setattr(self, item.name, getattr(self, item.name) + getattr(other, item.name))
        self.cut = max(self.cut, other.cut)
        for key, name in other.first.items():
            self.first.setdefault(key, name)
        if other.low is not None and other.high is not None:
            self._widen(other.low, other.high, other.white)

    def _widen(self, low: float, high: float, white: int | None) -> None:
        self.low = low if self.low is None else min(self.low, low)
        self.high = high if self.high is None else max(self.high, high)
        self.white = white if self.white is None else max(self.white, white or 0)

    @classmethod
    def parse(cls, stored: Mapping[str, Any]) -> "Seen":
        """The inverse of `dataclasses.asdict`."""
        return cls(**{item.name: stored[item.name] for item in fields(cls)})

    def lines(self, image_size: int, rules: PixelRules, prefix: str = "--") -> list[str]:
        """Sentences for people, the ones that ask for a decision last; empty where there is nothing to say.

        `prefix` stands before the names of flags.
        """
        texts = {
            "enlarged": f"smaller than {image_size} and enlarged",
            "cropped": f"not square; their centre square is trained on, without up to {100 * self.cut:.0f} % of an "
            "image. To keep all of it, pad the images beforehand (PIL.ImageOps.pad)",
            "rotated": "turned upright (EXIF)",
            "composited": f"partly transparent and put on {rules.background}",
            "converted": "converted from an embedded colour profile to sRGB",
            "unread_profiles": "with a colour profile that is broken or does not fit, taken as sRGB",
            "other_colours": "not sRGB by cICP, gAMA, cHRM or EXIF, which is not followed: taken as sRGB",
            "deep": "of more than 8 bits per value, scaled to 8",
        }
        said = [
            f"{getattr(self, key)} of {self.images} images: {text} (first: {self.first[key]})"
            for key, text in texts.items()
            if getattr(self, key)
        ]
        return [*said, *self._questions(rules, prefix)]

    def _questions(self, rules: PixelRules, prefix: str) -> list[str]:
        """What may have been misunderstood, with the flag that decides otherwise."""
        asked = []
        if self.composited > self.images / 2:
            asked.append(
                "Most images are partly transparent. If their fourth band is something else (near infrared, say), "
                f"use {prefix}background none, which ignores it."
            )
        if self.deep and self.low is not None and self.high is not None:
            asked += self._range_question(self.low, self.high, rules, prefix)
        return asked

    def _range_question(self, low: float, high: float, rules: PixelRules, prefix: str) -> list[str]:
        if rules.range is not None:
            outside = low < rules.range[0] or high > rules.range[1]
            text = f"Their values go from {low:g} to {high:g}; what is outside of {prefix}range was clipped."
            return [text] if outside else []
        if self.white != 2**16 - 1 or (high >= HALF and high - low >= QUARTER):
            return []
        bits = int(high).bit_length()
        narrow = f"{low:g} {high:g}" if high >= HALF else f"0 {2**bits - 1}"
        meant = f"{bits} bits" if high < HALF else "a part of them"
        dark = "nearly black" if high < 2**12 else "too dark" if high < HALF else "without contrast"
        return [
            f"Their values go from {low:g} to {high:g} of 65535: they hold {meant}, and come out {dark}. Scale them "
            f"with {prefix}range {narrow}."
        ]


def merged(parts: Iterable[Mapping[str, Any]]) -> Seen:
    """The counts of all parts (each by `asdict`), in order."""
    total = Seen()
    for part in parts:
        total.merge(Seen.parse(part))
    return total
