"""Plots by matplotlib in the style of the report: inline SVG in the colours of the page, SVG and PDF files for papers.

Lengths are in points; a point is one user unit of the SVG. Nothing of a drawing depends on the date or the process, so
the same results give the same bytes.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from llm2slm.atomic import replacing
from llm2slm.evaluation.report.entries import KINDS, SHADES, Entry
from llm2slm.evaluation.report.tables import one_line, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

WIDTH, HEIGHT = 440.0, 290.0
LEFT, RIGHT, TOP, BOTTOM = 44.0, 14.0, 26.0, 42.0
CHARACTER = 7.0
"""Average width of a character of plot text, in points."""
INK, SOFT, GRID, CARD = "#1b1f24", "#59616b", "#e9eae6", "#ffffff"
PAGE_COLOURS = {INK: "var(--ink)", SOFT: "var(--soft)", GRID: "var(--grid)", CARD: "var(--card)"}
"""Colours of the files -> variables of the page's style sheet, which has a light and a dark theme."""
MARKERS = {"llm": "s", "slm": "^", "llm2slm": "o", "other": "D"}
DASHES: tuple[Any, ...] = ("-", (0, (3.5, 2)), (0, (1, 2)), (0, (4.5, 1.5, 1, 1.5)), (0, (2, 1)))
"""Of lines, by shade."""
_BASE = {"llm": "#3f5fb5", "slm": "#b5651d", "llm2slm": "#0b8467", "other": "#7b4ea3"}
_MIXED = ((1.0, INK), (0.62, INK), (0.62, CARD), (0.35, INK), (0.4, CARD))
"""By shade: the share of the kind's colour, and the colour that it is mixed with."""
_STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": SOFT,
    "axes.facecolor": "none",
    "axes.labelcolor": SOFT,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "none",
    "font.family": "DejaVu Sans",
    "font.size": 11.5,
    "grid.color": GRID,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # TrueType, which journals require
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "llm2slm",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "ytick.major.size": 0,
}
_METADATA: dict[str, dict[str, None]] = {
    "svg": dict.fromkeys(("Date", "Creator", "Format", "Type")),
    "pdf": dict.fromkeys(("CreationDate", "Creator", "Producer")),
}
_KEPT = frozenset({"opacity", "text-anchor", "font-size", "font-weight", "fill", "fill-opacity", "stroke"}) | {
    f"stroke-{name}" for name in ("dasharray", "linecap", "linejoin", "opacity", "width")
}
_SVG, _HREF = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"


@dataclass(frozen=True)
class Plot:
    """A plot with its heading, its caption, and a legend of (style class, text)."""

    title: str
    caption: str
    drawing: str
    """Inline SVG with a text alternative."""
    figure: Figure
    legend: list[tuple[str, str]] = field(default_factory=list)


def _mix(colour: str, other: str, share: float) -> str:
    pairs = [(int(colour[n : n + 2], 16), int(other[n : n + 2], 16)) for n in (1, 3, 5)]
    return "#" + "".join(f"{round(share * one + (1 - share) * two):02x}" for one, two in pairs)


COLOURS = {
    f"k-{kind} s{shade}": _mix(base, other, share)
    for kind, base in _BASE.items()
    for shade, (share, other) in enumerate(_MIXED[:SHADES])
}
"""Colour of the files by `Entry.style`."""
_CLASSES = {colour: style for style, colour in COLOURS.items()}


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round values that enclose [low, high], at most about `count` steps apart."""
    from matplotlib.ticker import MaxNLocator

    if not high > low:
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    return [float(f"{value:.12g}") for value in MaxNLocator(count, steps=[1, 2, 5, 10]).tick_values(low, high)]


def tick_texts(values: Sequence[float]) -> list[str]:
    """The values with the fewest decimals at which neighbours differ."""
    steps = [abs(b - a) for a, b in pairwise(values) if b != a]
    decimals = max(0, -math.floor(math.log10(min(steps)) + 1e-9)) if steps else 0
    return [f"{value:,.{decimals}f}".replace("-", "−") for value in values]


@contextmanager
def canvas(height: float = HEIGHT, left: float = LEFT, right: float = RIGHT, top: float = TOP) -> Iterator[Canvas]:
    """An empty plot in the report's style; the style holds within the context only."""
    with _style():
        yield Canvas(height, left, right, top)


@contextmanager
def _style() -> Iterator[None]:
    """The report's style, without warnings about glyphs that the font lacks (names may be in any script)."""
    from matplotlib import rc_context

    with rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


class Canvas:
    """A plot in the making.

    Attributes:
        axes: to draw on; nothing is clipped, so that the SVG needs no ids.
        facts: what the plot shows, for its text alternative.
    """

    def __init__(self, height: float, left: float, right: float, top: float) -> None:
        from matplotlib.figure import Figure

        self.figure = Figure((WIDTH / 72, height / 72), dpi=72)
        box = left / WIDTH, BOTTOM / height, 1 - (left + right) / WIDTH, 1 - (top + BOTTOM) / height
        self.axes: Axes = self.figure.add_axes(box)
        self.facts: list[str] = []
        self._tips: dict[str, str] = {}

    def tip(self, text: str, *, fact: bool = True) -> str:
        """The id of an artist that shows `text` under the pointer; the text is a fact of the plot where `fact`."""
        self.facts += [text] if fact else []
        self._tips[key := f"tip-{len(self._tips)}"] = text
        return key

    def point(self, entry: Entry, x: float, y: float, tip: str, *, size: float = 10.0, fact: bool = True) -> None:
        """A marker in the shape and colour of a system; its tip is a fact of the plot where `fact`."""
        shape = MARKERS[entry.kind if entry.kind in KINDS else "other"]
        size *= 0.75 if shape == "D" else 1.0
        self.axes.plot(
            [x], [y], shape, color=COLOURS[entry.style], ms=size, mec=CARD, mew=1.5, clip_on=False,
            gid=self.tip(tip, fact=fact), zorder=4,
        )  # fmt: skip

    def whisker(self, entry: Entry, low: float, high: float, y: float, *, caps: bool = True) -> None:
        """A horizontal bar from `low` to `high`."""
        self.axes.errorbar(
            [low], [y], xerr=[[0.0], [high - low]], fmt="none", ecolor=COLOURS[entry.style], elinewidth=1.5, alpha=0.65,
            capsize=4 if caps else 0, capthick=1.5, clip_on=False, zorder=3,
        )  # fmt: skip

    def line(self, entry: Entry, x: Sequence[float], y: Sequence[float], *, faint: bool = False) -> None:
        """A line in the colour of a system, dashed by its shade."""
        width, alpha = (1.2, 0.4) if faint else (2.0, 1.0)
        self.axes.plot(
            x, y, color=COLOURS[entry.style], ls=DASHES[entry.shade], lw=width, alpha=alpha, clip_on=False, zorder=3
        )

    def frame(self, titles: tuple[str, str], y_ticks: Sequence[float], better: str = "", unit: str = "") -> None:
        """Horizontal grid, tick labels (with `unit` behind them), the titles of x and y axis, and a hint at the top."""
        height = self.figure.get_figheight() * 72
        self.axes.set_ylim(y_ticks[0], y_ticks[-1])
        self.axes.set_yticks(y_ticks, [text + unit for text in tick_texts(y_ticks)])
        self.axes.grid(axis="y")
        self.axes.set_xlabel(titles[0], loc="right")
        self.figure.text(10 / WIDTH, 1 - 12 / height, titles[1], color=SOFT)
        if better:
            self.figure.text(1 - RIGHT / WIDTH, 1 - 12 / height, f"{better} better", color=SOFT, ha="right")

    def x_axis(self, low: float, high: float, marks: Sequence[tuple[float, str]], *, log: bool = False) -> None:
        """Limits and tick labels of x; a label that would run into the one before it is left out."""
        if log:
            self.axes.set_xscale("log")
            self.axes.minorticks_off()
        if low == high:
            low, high = (low / 2, high * 2) if log else (low - 1, high + 1)
        self.axes.set_xlim(low, high)
        texts, free = [], -math.inf
        for value, text in marks:
            at, half = self.axes.transData.transform((value, 0))[0], len(text) * CHARACTER / 2
            fits = at - half > free
            texts.append(text if fits else "")
            free = at + half + 4 if fits else free
        self.axes.set_xticks([value for value, _ in marks], texts)

    def name_points(self, points: Sequence[tuple[str, float, float]]) -> bool:
        """Writes names next to points where they cover no point and no other name. Whether all fitted."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.transforms import Bbox

        renderer = FigureCanvasAgg(self.figure).get_renderer()
        places = [self.axes.transData.transform((x, y)) for _, x, y in points]
        taken = [Bbox.from_bounds(x - 7, y - 7, 14, 14) for x, y in places]
        bounds: Bbox = self.axes.bbox.padded(8)
        return all(self._name(words, (x, y), bounds, taken, renderer) for words, x, y in points)

    def _name(self, words: str, at: tuple[float, float], bounds: Bbox, taken: list[Bbox], renderer: Any) -> bool:
        centered = [(0, 9, "center"), (0, -20, "center"), (0, 24, "center"), (0, -35, "center")]
        aside = [(-7, 9, "left"), (7, 9, "right"), (10, -4, "left"), (-10, -4, "right")]
        for dx, dy, align in (*centered[:2], *aside, *centered[2:]):
            text = self.axes.annotate(
                words, at, (dx, dy), textcoords="offset points", ha=align, weight="bold", gid="label"
            )
            box = text.get_window_extent(renderer)
            inside = bounds.x0 <= box.x0 and box.x1 <= bounds.x1 and bounds.y0 <= box.y0 and box.y1 <= bounds.y1
            if inside and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                return True
            text.remove()
        return False

    def finish(self, title: str, caption: str, label: str, legend: Sequence[tuple[str, str]] = ()) -> Plot:
        """The finished plot; `label` and the facts are its text alternative."""
        alternative = escape(f"{label} {'; '.join(self.facts)}")
        root = ElementTree.fromstring(_saved(self.figure, "svg"))
        shapes = {f"#{node.get('id')}": node for node in root.iter(f"{_SVG}path") if node.get("id")}
        body = "".join(_inline(node, shapes, self._tips) for node in root)
        drawing = f'<svg viewBox="{root.get("viewBox")}" role="img" aria-label="{alternative}">{body}</svg>'
        return Plot(title, caption, drawing, self.figure, list(legend))


def _saved(figure: Figure, form: str, **options: Any) -> bytes:
    with io.BytesIO() as file:
        figure.savefig(file, format=form, metadata=_METADATA[form], **options)
        return file.getvalue()


def _inline(node: ElementTree.Element, shapes: Mapping[str, ElementTree.Element], tips: Mapping[str, str]) -> str:
    """An element of matplotlib's SVG for the page: attributes instead of styles (which the page's policy forbids),
    the page's colours and fonts, no ids and no references."""
    tag, key, attributes = node.tag.removeprefix(_SVG), node.get("id", ""), _attributes(node)
    if tag in ("defs", "metadata"):
        return ""
    if tag == "use":
        tag, shape = "path", shapes[node.get(_HREF, "")]
        attributes |= _attributes(shape) | {"transform": f"translate({_round(node.get('x'))} {_round(node.get('y'))})"}
    if tag == "path" and attributes.get("fill") == "none" and "stroke" not in attributes:
        return ""
    if tag == "text":
        attributes |= {name: _round(node.get(name)) for name in ("x", "y")}
        attributes |= {"class": "label"} if node.get("class") == "label" else {}
    elif tag == "g" and key == "label":
        node[0].set("class", "label")
    title = f"<title>{escape(tips[key])}</title>" if key in tips else ""
    body = title + escape((node.text or "") if tag == "text" else "") + "".join(
        _inline(child, shapes, tips) for child in node
    )  # fmt: skip
    if tag == "g" and not title:
        return body
    written = "".join(f' {name}="{escape(value)}"' for name, value in attributes.items())
    return f"<{tag}{written}>{body}</{tag}>"


def _attributes(node: ElementTree.Element) -> dict[str, str]:
    """The presentation attributes of an element, and the outline of a path."""
    style = dict(part.split(": ", 1) for part in node.get("style", "").split("; ") if part)
    found = {name: value for name, value in style.items() if name in _KEPT}
    for name in ("fill", "stroke"):
        if (value := found.get(name)) in _CLASSES:
            found |= {name: "var(--c2, var(--c))", "class": _CLASSES[value]}
        elif value in PAGE_COLOURS:
            found[name] = PAGE_COLOURS[value]
    return found | ({"d": _round(node.get("d"))} if "d" in node.attrib else {})


def _round(text: str | None) -> str:
    """Coordinates with at most two decimals, on one line."""
    one_line = " ".join((text or "").split())
    return re.sub(r"-?\d+\.\d+", lambda found: f"{float(found[0]):.2f}".rstrip("0").rstrip("."), one_line)


def _look(style: str) -> dict[str, Any]:
    """Colour and dashes of a legend's line, by its style class."""
    if style in COLOURS:
        return {"color": COLOURS[style], "ls": DASHES[int(style[-1])]}
    return {"color": SOFT, "alpha": 0.36 if style == "swatch-decode" else 1}


def write_plots(folder: Path, plots: Sequence[Plot]) -> list[Path]:
    """Writes each plot as SVG and as PDF, with its legend above it, named by its title; returns the paths."""
    from matplotlib.lines import Line2D

    paths: list[Path] = []
    for plot in plots:
        stem = name = re.sub(r"[^a-z0-9]+", "-", plot.title.lower()).strip("-")[:80] or "plot"
        number = 1
        while folder / f"{name}.svg" in paths:
            name = f"{stem}-{(number := number + 1)}"
        with _style():
            handles = [Line2D([], [], lw=3, **_look(style)) for style, _ in plot.legend]
            if handles:
                texts = [shortened(one_line(text), 40) for _, text in plot.legend]
                plot.figure.legend(handles, texts, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
            for form in ("svg", "pdf"):
                path = folder / f"{name}.{form}"
                with replacing(path) as file:
                    file.write(_saved(plot.figure, form, bbox_inches="tight"))
                paths.append(path)
    return paths
