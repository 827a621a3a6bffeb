"""What decoding did to the images of a set, counted, so that nobody has to find out from the samples."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from epg.data.decode import Origin
from epg.data.pixels.rules import PixelRules
from epg.data.prepared.encode import PixelOptions
from epg.data.sources.classes import classes_line

HALF = 2**15  # of the values of 16 bits
QUARTER = 2**14
KINDS = {
    "enlarged": "smaller than {size} and enlarged",
    "cropped": "not square; their centre square is trained on, without up to {cut:.0f} % of an image. To keep all of "
    "it, pad the images beforehand (PIL.ImageOps.pad)",
    "frames": "of several frames or pages, of which the first is used",
    "rotated": "turned upright (EXIF)",
    "composited": "partly transparent and put on {background}",
    "converted": "converted from an embedded colour profile to sRGB",
    "unread_profiles": "with a colour profile that is broken or does not fit, taken as sRGB",
    "other_colours": "not sRGB by cICP, gAMA, cHRM or EXIF, which is not followed: taken as sRGB",
    "deep": "of more than 8 bits per value, scaled to 8",
}
"""What is counted, in words."""


@dataclass
class Seen:
    """Counts over images, by `KINDS`; `first` names one image of every kind."""

    images: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)
    cut: float = 0.0
    """The largest part of its area that an image lost because it is not square."""
    low: float | None = None
    """The smallest value of all deep images."""
    high: float | None = None
    white: int | None = None
    """The largest value that the deepest format has; None where it is unknown."""

    def add(self, name: str, origin: Origin, *, image_size: int) -> None:
        """Count one image."""
        short, long = sorted((origin.width, origin.height))
        found = {
            "enlarged": short < image_size,
            "cropped": short < long,
            "frames": origin.frames,
            "rotated": origin.rotated,
            "composited": origin.transparent,
            "converted": origin.profile == "converted",
            "unread_profiles": origin.profile == "unread",
            "other_colours": origin.other_colours,
            "deep": origin.depth is not None,
        }
        one = Seen(1, {kind: 1 for kind in found if found[kind]}, {kind: name for kind in found if found[kind]})
        one.cut = 1 - short / long
        if origin.depth is not None:
            one.low, one.high, one.white = origin.depth.low, origin.depth.high, origin.depth.kind.white
        self.merge(one)

    def merge(self, other: "Seen") -> None:
        """Add the counts of another part of the set, later in order."""
        self.images += other.images
        for kind, count in other.counts.items():
            self.counts[kind] = self.counts.get(kind, 0) + count
        self.first = {**other.first, **self.first}
        self.cut = max(self.cut, other.cut)
        if other.low is not None and other.high is not None:
            self.low = other.low if self.low is None else min(self.low, other.low)
            self.high = other.high if self.high is None else max(self.high, other.high)
            self.white = other.white if self.white is None else max(self.white, other.white or 0)

    def lines(self, image_size: int, rules: PixelRules, prefix: str = "--") -> list[str]:
        """Sentences for people, the ones that ask for a decision last; empty where there is nothing to say.

        `prefix` stands before the names of flags.
        """
        words = {"size": image_size, "cut": 100 * self.cut, "background": rules.background}
        said = [
            f"{self.counts[kind]} of {self.images} images: {text.format(**words)} (first: {self.first[kind]})"
            for kind, text in KINDS.items()
            if kind in self.counts
        ]
        if self.counts.get("composited", 0) > self.images / 2:
            said.append(
                "Most images are partly transparent. If their fourth band is something else (near infrared, say), "
                f"use {prefix}background none, which ignores it."
            )
        if self.low is not None and self.high is not None:
            said += self._range_question(self.low, self.high, rules, prefix)
        return said

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


def manifest_lines(manifest: Mapping[str, Any]) -> list[str]:
    """What a prepared set is: its classes, where images and labels come from, what was done to the images."""
    names, counts = ([entry[key] for entry in manifest["classes"]] for key in ("name", "images"))
    pixels = PixelOptions(**manifest["pixels"])
    seen = Seen(**manifest["seen"]).lines(pixels.image_size, pixels)
    return [classes_line(names, counts), *manifest["overview"], *seen]
