"""Lines over steps or noise levels as SVG inside the page; colours are its style's, so that they suit both schemes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH, HEIGHT = 400, 230
LEFT, RIGHT, TOP, BOTTOM = 50, 12, 10, 38
MOST_POINTS = 160  # of a line; of more, means of neighbours are drawn
MARKED = 20  # points, up to which each gets a mark
COLOURS, DASHES = 8, 4
STEEP = 20.0  # largest over smallest, from which on a scale is logarithmic

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """Numbers over steps or levels."""

    name: str
    points: Sequence[Point]
    errors: Sequence[float] = ()
    """Standard errors, one for each point, or none at all."""
    number: int = 0
    """Which colour and dashes it has: its place among the lines of a chart, with points or without."""


@dataclass(frozen=True)
class Scale:
    """From numbers to places on the page."""

    low: float
    high: float
    begin: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        a, b, x = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return self.begin + (self.end - self.begin) * (x - a) / (b - a)

    def ticks(self) -> list[float]:
        """Round numbers inside, some three to seven."""
        if not self.log:
            width = (self.high - self.low) / 4
            unit = 10 ** math.floor(math.log10(width))
            step = next(unit * m for m in (1, 2, 2.5, 5, 10) if unit * m >= width * 0.999)
            first = math.ceil(self.low / step - 1e-9)
            return [step * i for i in range(first, math.floor(self.high / step + 1e-9) + 1)]
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        steps = (1.0,) if last - first > 2 else (1.0, 2.0, 5.0)
        every = -(-(last - first) // 6)
        found = [m * 10.0**e for e in range(first, last + 1, every) for m in steps]
        return [x for x in found if self.low * 0.999 <= x <= self.high * 1.001]


def chart(
    title: str,
    lines: Sequence[Line],
    *,
    x: str = "step",
    log_x: bool = False,
    even: bool = False,
    level: tuple[str, float] | None = None,
) -> Markup | None:
    """A figure with its title, its legend and, for who cannot see it, its numbers in words; None without points.

    Args:
        x: what the numbers are over.
        even: whether the scale is linear, however steep the lines.
        level: a dotted line at a value, with its name.
    """
    known = [Line(line.name, line.points, line.errors, i) for i, line in enumerate(lines) if line.points]
    if not known:
        return None
    drawn = [thinned(line) for line in known]
    values = [y for line in drawn for y in reach(line)] + ([level[1]] if level else [])
    places = [place for line in drawn for place, _ in line.points]
    horizontal = scale(places, LEFT, WIDTH - RIGHT, log_x)
    steep = not even and min(values) > 0 and max(values) / min(values) > STEEP
    vertical = scale(values, HEIGHT - BOTTOM, TOP, steep)
    parts = [axes(horizontal, vertical, x)]
    if level:
        y = vertical(level[1])
        parts.append(Markup('<path class="level" d="M{} {:.1f}H{}"/>').format(LEFT, y, WIDTH - RIGHT))
    parts += [drawing(line, horizontal, vertical) for line in drawn]
    words = "; ".join(told(line) for line in known) + (f"; {level[0]}: {short(level[1])}" if level else "")
    return Markup(
        '<figure class="chart"><figcaption>{}</figcaption><svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>'
        "{}</figure>"
    ).format(title, WIDTH, HEIGHT, f"{title} over {x}: {words}", Markup("").join(parts), legend(drawn, level))


def reach(line: Line) -> list[float]:
    """Its numbers, and the ends of their error bars, but for those that a logarithmic scale could not show."""
    values = [y for _, y in line.points]
    ends = [y + sign * e for y, e in zip(values, line.errors, strict=False) for sign in (-1, 1)]
    return values + [end for end in ends if end > 0 or min(values) <= 0]


def scale(values: Sequence[float], begin: float, end: float, log: bool) -> Scale:
    """With a little room above and below; over one number alone, too."""
    low, high = min(values), max(values)
    if log:
        return Scale(low / 1.1, high * 1.1, begin, end, True) if low == high else Scale(low, high, begin, end, True)
    room = 0.04 * (high - low) or 0.1 * abs(high) or 1.0
    return Scale(low - room, high + room, begin, end)


def thinned(line: Line) -> Line:
    """Means of so many neighbours that at most MOST_POINTS are left; the first and the last stay at their places."""
    points = line.points
    every = -(-len(points) // MOST_POINTS)
    if every <= 1:
        return line
    groups = [points[i : i + every] for i in range(0, len(points), every)]
    means = [(g[-1][0] if i else g[0][0], math.fsum(y for _, y in g) / len(g)) for i, g in enumerate(groups)]
    return Line(line.name, means, (), line.number)


def drawing(line: Line, horizontal: Scale, vertical: Scale) -> Markup:
    """One line, with marks where points are few."""
    places = [(horizontal(x), vertical(y)) for x, y in line.points]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    parts = [Markup('<path class="line" d="{}"/>').format(path)]
    if len(places) <= MARKED:
        for (x, y), point in zip(places, line.points, strict=True):
            text = f"{line.name}: {short(point[1])} at {short(point[0])}"
            parts.append(Markup('<circle cx="{:.1f}" cy="{:.1f}" r="3"><title>{}</title></circle>').format(x, y, text))
    for (x, _), (_, value), error in zip(places, line.points, line.errors, strict=False):
        low, high = (clipped(vertical, value + sign * error) for sign in (-1, 1))
        parts.append(Markup('<path d="M{:.1f} {:.1f}V{:.1f}"/>').format(x, low, high))
    return Markup('<g class="c{} d{}">{}</g>').format(
        line.number % COLOURS, line.number % DASHES, Markup("").join(parts)
    )


def clipped(vertical: Scale, value: float) -> float:
    return vertical(min(max(value, vertical.low), vertical.high))


def axes(horizontal: Scale, vertical: Scale, x: str) -> Markup:
    """Grid, numbers, and what is along the horizontal axis."""
    parts = []
    for value in vertical.ticks():
        y = vertical(value)
        parts.append(Markup('<path class="grid" d="M{} {:.1f}H{}"/>').format(LEFT, y, WIDTH - RIGHT))
        parts.append(Markup('<text x="{}" y="{:.1f}" class="end">{}</text>').format(LEFT - 5, y + 4, short(value)))
    for value in horizontal.ticks():
        place = horizontal(value)
        parts.append(Markup('<path class="grid" d="M{:.1f} {}v4"/>').format(place, HEIGHT - BOTTOM))
        text = Markup('<text x="{:.1f}" y="{}" class="middle">{}</text>')
        parts.append(text.format(place, HEIGHT - BOTTOM + 17, short(value)))
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(Markup('<text x="{}" y="{}" class="middle">{}</text>').format(middle, HEIGHT - 4, x))
    return Markup("").join(parts)


def legend(lines: Sequence[Line], level: tuple[str, float] | None) -> Markup:
    """Which line is which; nothing where there is one alone."""
    swatch = Markup('<svg viewBox="0 0 28 8" aria-hidden="true">{}</svg>')
    path = Markup('<g class="c{} d{}"><path class="line" d="M0 4H28"/></g>')
    kinds = [(line.number % COLOURS, line.number % DASHES) for line in lines]
    items = [(swatch.format(path.format(*kind)), line.name) for kind, line in zip(kinds, lines, strict=True)]
    items = items if len(items) > 1 or level else []
    if level:
        items.append((swatch.format(Markup('<path class="level" d="M0 4H28"/>')), level[0]))
    if not items:
        return Markup("")
    listed = Markup("").join(Markup("<li>{}{}</li>").format(drawing, name) for drawing, name in items)
    return Markup('<ul class="legend">{}</ul>').format(listed)


def told(line: Line) -> str:
    """A line in words."""
    first, last = line.points[0][1], line.points[-1][1]
    if len(line.points) == 1:
        return f"{line.name}: {short(last)}"
    return f"{line.name}: from {short(first)} to {short(last)}, lowest {short(min(y for _, y in line.points))}"


def short(value: float) -> str:
    """A number as it stands at an axis."""
    if abs(value) >= 1e6:
        return f"{value / 1e6:.4g}M"
    if abs(value) >= 1e4:
        return f"{value / 1e3:.4g}k"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
