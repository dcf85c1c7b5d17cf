"""Drawing of plots as inline SVG: elements with everything escaped, scales, round ticks, and the frame of axes.

Colours, fonts and line widths belong to the page's style sheet (by class), so that a plot follows the page's theme.
No style attributes are written: the page's Content-Security-Policy forbids them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

WIDTH = 440.0
"""Width of a plot in user units; text is 12 units high, legible when a phone shows the plot at 80 %."""
LEFT, RIGHT, TOP, BOTTOM = 44.0, 14.0, 26.0, 42.0
CHARACTER = 7.0
"""Average width of a character of plot text, in user units."""


def coordinate(value: float) -> str:
    """A coordinate with at most two decimals."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def element(tag: str, body: str = "", **attributes: float | str | None) -> str:
    """An SVG element. `body` is markup already; attribute values are escaped; `cls` is class, `a_b` is a-b."""
    written = []
    for name, value in attributes.items():
        if value is not None:
            shown = value if isinstance(value, str) else coordinate(value)
            written.append(f' {"class" if name == "cls" else name.replace("_", "-")}="{escape(shown)}"')
    return f"<{tag}{''.join(written)}>{body}</{tag}>"


def text(words: str, x: float, y: float, cls: str = "", anchor: str = "start") -> str:
    """A text element with `words` escaped."""
    return element("text", escape(words), x=x, y=y, cls=cls or None, text_anchor=anchor)


def shortened(words: str, limit: int) -> str:
    """`words` cut to `limit` characters, with an ellipsis where something was cut."""
    return words if len(words) <= limit else words[: limit - 1].rstrip() + "…"


@dataclass(frozen=True)
class Scale:
    """Maps [low, high] to [start, stop] user units, linearly or by the logarithm."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            value, low, high = math.log(value), math.log(low), math.log(high)
        if high == low:
            return (self.start + self.stop) / 2
        return self.start + (value - low) / (high - low) * (self.stop - self.start)


def tick_step(low: float, high: float, count: int) -> float:
    """A step of 1, 2 or 5 times a power of ten that gives at most about `count` steps over the range."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round values that enclose [low, high]: the first is at most `low`, the last at least `high`."""
    if not high > low:
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    step = tick_step(low, high, count)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(n * step, 12) for n in range(first, last + 1)]


def tick_texts(values: Sequence[float]) -> list[str]:
    """The values with the fewest decimals that tell neighbours apart."""
    steps = [abs(b - a) for a, b in pairwise(values) if b != a]
    decimals = max(0, -math.floor(math.log10(min(steps)) + 1e-9)) if steps else 0
    return [f"{value:,.{decimals}f}" for value in values]


def frame(
    x: Scale,
    y: Scale,
    x_marks: Sequence[tuple[float, str]],
    y_ticks: Sequence[float],
    titles: tuple[str, str],
    *,
    unit: str = "",
) -> str:
    """Horizontal grid lines, axes, tick labels and the two titles (x, y). `unit` follows every y label (as × or %).

    `x_marks` are positions and their labels; a label that would run into the one before it is left out.
    """
    left, right, floor = LEFT, WIDTH - RIGHT, y.start
    parts = [text(titles[1], LEFT - 34, 12, "title")]
    for value, label in zip(y_ticks, tick_texts(y_ticks), strict=True):
        height = y(value)
        parts.append(element("line", x1=left, x2=right, y1=height, y2=height, cls="grid"))
        parts.append(text(label + unit, left - 8, height + 4, "tick", "end"))
    parts.append(element("line", x1=left, x2=right, y1=floor, y2=floor, cls="axis"))
    free = -math.inf
    for value, label in x_marks:
        parts.append(element("line", x1=x(value), x2=x(value), y1=floor, y2=floor + 4, cls="axis"))
        half = len(label) * CHARACTER / 2
        if x(value) - half > free:
            parts.append(text(label, x(value), floor + 17, "tick", "middle"))
            free = x(value) + half + 4
    parts.append(text(titles[0], right, floor + 35, "title", "end"))
    return "".join(parts)


def marks(values: Sequence[float]) -> list[tuple[float, str]]:
    """Tick positions with their labels."""
    return list(zip(values, tick_texts(values), strict=True))


def drawing(parts: Sequence[str], height: float, label: str) -> str:
    """The whole `<svg>`; `label` tells a reader who cannot see it what it shows."""
    return element(
        "svg", "".join(parts), viewBox=f"0 0 {coordinate(WIDTH)} {coordinate(height)}", role="img", aria_label=label
    )


def marker(kind: str, x: float, y: float, cls: str, tip: str = "", *, size: float = 5.0) -> str:
    """A point whose shape tells the kind of system: square LLM, triangle SLM, disc hybrid, diamond any other."""
    body = element("title", escape(tip)) if tip else ""
    if kind == "llm2slm":
        return element("circle", body, cx=x, cy=y, r=size, cls=cls)
    corners = {
        "llm": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
        "slm": [(0, -1.15), (1.1, 0.85), (-1.1, 0.85)],
    }.get(kind, [(0, -1.2), (1.2, 0), (0, 1.2), (-1.2, 0)])
    points = " ".join(f"{coordinate(x + dx * size)},{coordinate(y + dy * size)}" for dx, dy in corners)
    return element("polygon", body, points=points, cls=cls)


def polyline(points: Sequence[tuple[float, float]], cls: str) -> str:
    """A line through the points."""
    return element("polyline", points=" ".join(f"{coordinate(a)},{coordinate(b)}" for a, b in points), cls=cls)


@dataclass(frozen=True)
class Box:
    """A rectangle that a label would cover."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: Box) -> bool:
        """Whether the two overlap."""
        apart = self.right <= other.left or other.right <= self.left
        return not (apart or self.bottom <= other.top or other.bottom <= self.top)


def place_label(words: str, x: float, y: float, bounds: Box, taken: list[Box]) -> str:
    """A label beside the point (x, y): the first free place above, below, right or left of it; "" if there is none.

    `taken` holds what labels must not cover, and grows by the label's own box.
    """
    wide, high = len(words) * CHARACTER, 14.0
    inside = min(max(x - wide / 2, bounds.left), bounds.right - wide)
    places = [
        (inside, y - 23),
        (inside, y + 10),
        (x + 10, y - 7),
        (x - 10 - wide, y - 7),
        (inside, y - 38),
        (inside, y + 25),
    ]
    for left, top in places:
        box = Box(left, top, left + wide, top + high)
        fits = left >= bounds.left and box.right <= bounds.right and top >= bounds.top and box.bottom <= bounds.bottom
        if fits and not any(box.meets(other) for other in taken):
            taken.append(box)
            return text(words, left + wide / 2, top + 11, "label", "middle")
    return ""
