"""The plots of the report: quality against latency and by length, latency split, speedup by response length, training
curves.

Each function returns `Figure`s, none where the results lack what it draws. Values that are not finite are left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from llm2slm.evaluation.report import svg
from llm2slm.evaluation.report.entries import Entry, metric_keys, metric_name
from llm2slm.evaluation.report.svg import BOTTOM, LEFT, RIGHT, TOP, WIDTH, Box, Scale
from llm2slm.evaluation.report.tables import conditions, length, number, score, times
from llm2slm.runs import LOWER_IS_BETTER

HEIGHT = 290.0
MAX_PANELS = 6
MAX_BANDS = 4


@dataclass(frozen=True)
class Figure:
    """A plot with its heading, what to know to read it, and a legend of (class, words)."""

    title: str
    caption: str
    drawing: str
    legend: list[tuple[str, str]] = field(default_factory=list)


def _finite(*values: Any) -> bool:
    return all(isinstance(value, int | float) and math.isfinite(value) for value in values)


def _horizontal(low: float, high: float, log: bool = False) -> Scale:
    return Scale(low, high, LEFT, WIDTH - RIGHT, log)


def _vertical(low: float, high: float, height: float = HEIGHT) -> Scale:
    return Scale(low, high, height - BOTTOM, TOP)


def _legend(shown: Sequence[Entry]) -> list[tuple[str, str]]:
    return [(entry.style, entry.label) for entry in shown]


def quality_latency(shown: Sequence[Entry]) -> list[Figure]:
    """The first metric against the time of a whole answer; a bar spans the fastest and slowest round."""
    metrics = metric_keys(shown)
    points: list[tuple[Entry, float, Mapping[str, float]]] = []
    for entry in shown:
        value = entry.system.get("quality", {}).get(metrics[0], {}).get("value") if metrics else None
        if value is not None and entry.row and _finite(value, *entry.row["total_ms"].values()):
            points.append((entry, value, entry.row["total_ms"]))
    if not points:
        return []
    name = metric_name(metrics[0])
    values = [value for _, value, _ in points]
    margin = (max(values) - min(values)) * 0.08 or abs(max(values)) * 0.02 or 1.0
    y_ticks = svg.ticks(min(values) - margin, max(values) + margin)
    x_ticks = svg.ticks(0, max(total["max"] for *_, total in points), 6)
    x, y = _horizontal(x_ticks[0], x_ticks[-1]), _vertical(y_ticks[0], y_ticks[-1])
    parts = [svg.frame(x, y, svg.marks(x_ticks), y_ticks, ("time for a whole answer, ms", name))]
    better = "↙ better" if metrics[0] in LOWER_IS_BETTER else "↖ better"
    parts.append(svg.text(better, WIDTH - RIGHT, 12, "hint", "end"))
    taken = [Box(x(t["min"]) - 7, y(v) - 7, x(t["max"]) + 7, y(v) + 7) for _, v, t in points]
    bounds = Box(LEFT, TOP - 10, WIDTH - RIGHT, HEIGHT - BOTTOM)
    said = []
    for entry, value, total in points:
        tip = f"{entry.label}: {name} {score(value)}, {number(total['median'])} ms"
        said.append(tip)
        for end in ("min", "max"):
            at = x(total[end])
            parts.append(
                svg.element("line", x1=at, x2=at, y1=y(value) - 4, y2=y(value) + 4, cls=f"spread {entry.style}")
            )
        first, last, height = x(total["min"]), x(total["max"]), y(value)
        parts.append(svg.element("line", x1=first, x2=last, y1=height, y2=height, cls=f"spread {entry.style}"))
        parts.append(svg.marker(entry.kind, x(total["median"]), y(value), f"point {entry.style}", tip))
    for entry, value, total in points:
        parts.append(svg.place_label(svg.shortened(entry.label, 30), x(total["median"]), y(value), bounds, taken))
    caption = f"{_sentence(points[0][0].row)} Whiskers: fastest to slowest round."
    drawing = svg.drawing(parts, HEIGHT, f"Scatter plot of {name} against milliseconds. " + "; ".join(said))
    return [Figure("Quality against latency", caption, drawing)]


def _sentence(row: Mapping[str, Any] | None) -> str:
    words = conditions(row) if row else ""
    return words[:1].upper() + words[1:] + "."


def latency_split(shown: Sequence[Entry]) -> list[Figure]:
    """Bars of the time until the first response token and of the rest of the answer."""
    timed = [
        (entry, entry.row["prefill_ms"], entry.row["total_ms"])
        for entry in shown
        if entry.row and _finite(*entry.row["prefill_ms"].values(), *entry.row["total_ms"].values())
    ]
    if not timed:
        return []
    pitch = min(66.0, max(46.0, (HEIGHT - 60) / len(timed)))
    floor = max(HEIGHT - BOTTOM, 8 + pitch * len(timed))
    x_ticks = svg.ticks(0, max(total["max"] for *_, total in timed), 6)
    x = Scale(0, x_ticks[-1], 6, WIDTH - 52)
    parts = []
    for value, label in zip(x_ticks, svg.tick_texts(x_ticks), strict=True):
        parts.append(
            svg.element("line", x1=x(value), x2=x(value), y1=8, y2=floor, cls="axis" if value == 0 else "grid")
        )
        parts.append(svg.text(label, x(value), floor + 17, "tick", "middle"))
    parts.append(svg.text("ms for a whole answer", x(x_ticks[-1]), floor + 35, "title", "end"))
    said = []
    top = 8 + (floor - 8 - pitch * len(timed)) / 2
    for index, (entry, prefill, total) in enumerate(timed):
        y = top + pitch * index + 20
        tip = f"{entry.label}: prefill {number(prefill['median'])} ms, whole answer {number(total['median'])} ms"
        said.append(tip)
        first, end = x(min(prefill["median"], total["median"])), x(total["median"])
        parts.append(svg.text(svg.shortened(entry.label, 56), 6 + 4, y - 4, "label"))
        title = svg.element("title", escape(tip))
        parts.append(svg.element("rect", title, x=x(0), y=y, width=end - x(0), height=20, cls=f"decode {entry.style}"))
        parts.append(
            svg.element("rect", title, x=x(0), y=y, width=first - x(0), height=20, cls=f"prefill {entry.style}")
        )
        parts.append(svg.element("line", x1=x(total["min"]), x2=x(total["max"]), y1=y + 10, y2=y + 10, cls="whisker"))
        parts.append(svg.text(number(total["median"]), x(total["max"]) + 6, y + 14, "value"))
    label = "Bars of milliseconds for prefill and for the whole answer. " + "; ".join(said)
    legend = [("swatch-prefill", "prefill: until the first token"), ("swatch-decode", "decode: all tokens after it")]
    caption = "At the end of each bar, the median time of the whole answer; thin line: fastest to slowest round."
    return [Figure("Where the time goes", caption, svg.drawing(parts, floor + BOTTOM, label), legend)]


@dataclass(frozen=True)
class _Measure:
    """A figure of speed rows drawn against response length."""

    key: str
    title: str
    axis: str
    unit: str
    write: Callable[[float], str]


SPEEDUP = _Measure("speedup", "Speedup by response length", "speedup over the LLM", "×", times)
LATENCY = _Measure("total_ms", "Latency by response length", "time for a whole answer, ms", "", number)


def by_length(shown: Sequence[Entry]) -> list[Figure]:
    """Speedup and latency against response length, a panel of each for each batch size and prompt length."""
    panels: dict[tuple[Any, ...], dict[int, list[Mapping[str, Any]]]] = {}
    for index, entry in enumerate(shown):
        for row in entry.system.get("speed", []):
            if row["lengths"] != "test" and _finite(row["response_tokens"], row["prompt_tokens"]):
                panel = (row["batch"], row["prompt_tokens"], row["decoding"], row["dtype"])
                panels.setdefault(panel, {}).setdefault(index, []).append(row)
    panels = {key: panel for key, panel in panels.items() if any(len(rows) > 1 for rows in panel.values())}
    drawn = [
        _length_panel(shown, measure, panel, len(panels) > 1)
        for panel in list(panels.values())[:MAX_PANELS]
        for measure in (SPEEDUP, LATENCY)
    ]
    return [figure for figure in drawn if figure is not None]


def _length_panel(
    shown: Sequence[Entry], measure: _Measure, panel: Mapping[int, Sequence[Mapping[str, Any]]], many: bool
) -> Figure | None:
    lines = []
    for index, own in panel.items():
        rows = [row for row in own if row.get(measure.key) and _finite(*row[measure.key].values())]
        if rows:
            lines.append((shown[index], sorted(rows, key=lambda row: float(row["response_tokens"]))))
    if not lines:
        return None
    first = lines[0][1][0]
    lengths = sorted({row["response_tokens"] for _, rows in lines for row in rows})
    y_ticks = svg.ticks(0, max(row[measure.key]["max"] for _, rows in lines for row in rows))
    log = lengths[0] > 0
    x = Scale(lengths[0], lengths[-1], LEFT + 16, WIDTH - RIGHT - 16, log)
    y = _vertical(0, y_ticks[-1])
    marks = [(value, f"{value:g}") for value in lengths]
    parts = [svg.frame(x, y, marks, y_ticks, ("response length, tokens (log scale)", measure.axis), unit=measure.unit)]
    said = []
    for entry, rows in lines:
        at = [(x(row["response_tokens"]), row[measure.key]) for row in rows]
        edge = [(a, y(value["max"])) for a, value in at] + [(a, y(value["min"])) for a, value in reversed(at)]
        if len(lines) <= MAX_BANDS:  # more of them hide each other
            parts.append(svg.polyline(edge, f"band {entry.style}"))
        parts.append(svg.polyline([(a, y(value["median"])) for a, value in at], f"line {entry.style}"))
        for (a, value), row in zip(at, rows, strict=True):
            tip = f"{entry.label}: {measure.write(value['median'])}{'' if measure.unit else ' ms'}"
            said.append(f"{tip} at {length(row['response_tokens'])} tokens")
            parts.append(svg.marker(entry.kind, a, y(value["median"]), f"point {entry.style}", said[-1], size=3.8))
    where = f"batch {first['batch']}, {length(first['prompt_tokens'])} prompt tokens"
    runs = " Each run against its own LLM." if measure is SPEEDUP and len({entry.run for entry, _ in lines}) > 1 else ""
    band = " Band: smallest to largest of all rounds." if len(lines) <= MAX_BANDS else ""
    caption = f"{where.capitalize()}, {first['decoding']} decoding.{band}{runs}"
    drawing = svg.drawing(parts, HEIGHT, f"Line plot, {measure.title}. " + "; ".join(said))
    return Figure(measure.title + (f": {where}" if many else ""), caption, drawing, _legend([e for e, _ in lines]))


def by_bucket(shown: Sequence[Entry]) -> list[Figure]:
    """The first metric by the words of the prompt, and by those of the response."""
    metrics = metric_keys(shown)
    if not metrics:
        return []
    figures = [_bucket_panel(shown, by, metrics[0]) for by in ("prompt", "response")]
    return [figure for figure in figures if figure is not None]


def _bucket_panel(shown: Sequence[Entry], by: str, metric: str) -> Figure | None:
    """Each bucket is a bar from its shortest to its longest row, with a point in the middle; lines join the points."""
    lines = []
    for entry in shown:
        own = [(b, b["quality"].get(metric)) for b in entry.system.get("buckets") or [] if b["by"] == by]
        points = sorted((max(b["low"], 1), max(b["high"], 1), value, b["n"]) for b, value in own if _finite(value))
        if points:
            lines.append((entry, points))
    if not lines:
        return None
    name = metric_name(metric)
    values = [value for _, points in lines for *_, value, _ in points]
    margin = (max(values) - min(values)) * 0.08 or abs(max(values)) * 0.02 or 1.0
    y_ticks = svg.ticks(min(values) - margin, max(values) + margin)
    ends = sorted({end for _, points in lines for low, high, *_ in points for end in (low, high)})
    x = Scale(ends[0], ends[-1], LEFT + 16, WIDTH - RIGHT - 16, log=True)
    y = _vertical(y_ticks[0], y_ticks[-1])
    parts = [svg.frame(x, y, [(end, f"{end:,}") for end in ends], y_ticks, (f"{by} length, words (log scale)", name))]
    parts.append(svg.text("↓ better" if metric in LOWER_IS_BETTER else "↑ better", WIDTH - RIGHT, 12, "hint", "end"))
    said = []
    for entry, points in lines:
        middles = [((x(low) + x(high)) / 2, y(value)) for low, high, value, _ in points]
        parts.append(svg.polyline(middles, f"line {entry.style}"))
        for (a, b), (low, high, value, n) in zip(middles, points, strict=True):
            tip = f"{entry.label}: {name} {score(value)} on {n:,} rows of {low} to {high} words"
            said.append(tip)
            parts.append(svg.element("line", x1=x(low), x2=x(high), y1=b, y2=b, cls=f"spread {entry.style}"))
            parts.append(svg.marker(entry.kind, a, b, f"point {entry.style}", tip, size=3.8))
    caption = (
        f"Rows by the words of their {'prompt' if by == 'prompt' else 'reference'}, cut at the quartiles of the split."
    )
    caption += " Bars: from the shortest to the longest row."
    drawing = svg.drawing(parts, HEIGHT, f"Line plot of {name} by {by} length. " + "; ".join(said))
    return Figure(f"{name} by {by} length", caption, drawing, _legend([entry for entry, _ in lines]))


def training_curves(shown: Sequence[Entry]) -> list[Figure]:
    """Loss (training faint, validation strong), then every other validation metric, by optimizer step."""
    keys = list(dict.fromkeys(key for entry in shown for point in entry.system.get("curve", []) for key in point))
    panels = [["train/loss", "val/loss"]] + [[key] for key in keys if key.startswith("val/") and key != "val/loss"]
    figures = [_curve_panel(shown, [key for key in panel if key in keys]) for panel in panels[:MAX_PANELS]]
    return [figure for figure in figures if figure is not None]


def _curve_panel(shown: Sequence[Entry], keys: Sequence[str]) -> Figure | None:
    series = []
    for entry in shown:
        for key in keys:
            points = [
                (point["step"], point[key])
                for point in entry.system.get("curve", [])
                if key in point and "step" in point
            ]
            points = sorted((step, value) for step, value in points if _finite(step, value))
            if points:
                series.append((entry, key, points))
    if not series:
        return None
    values = [value for *_, points in series for _, value in points]
    steps = [step for *_, points in series for step, _ in points]
    y_ticks = (
        svg.ticks(min(0.0, *values), max(values)) if min(values) != max(values) else svg.ticks(min(values), max(values))
    )
    x_ticks = svg.ticks(0, max(*steps, 1), 6)
    x, y = _horizontal(0, x_ticks[-1]), _vertical(y_ticks[0], y_ticks[-1])
    name = "loss" if keys[-1].endswith("loss") else metric_name(keys[-1].removeprefix("val/"))
    unit = "cross-entropy, nats per token" if name == "loss" else f"validation {name}"
    parts = [svg.frame(x, y, svg.marks(x_ticks), y_ticks, ("optimizer step", unit))]
    said = []
    for entry, key, points in series:
        strong = key != "train/loss"
        place = [(x(step), y(value)) for step, value in points]
        parts.append(svg.polyline(place, f"{'line' if strong else 'line faint'} {entry.style}"))
        if strong and len(points) <= 40:
            for (a, b), (step, value) in zip(place, points, strict=True):
                tip = f"{entry.label}: {key} {score(value)} at step {step:,.0f}"
                parts.append(svg.marker(entry.kind, a, b, f"point {entry.style}", tip, size=3))
        said.append(f"{entry.label}, {key}: from {score(points[0][1])} to {score(points[-1][1])}")
    both = "Strong: validation. Faint: training batches." if len({key for _, key, _ in series}) > 1 else ""
    drawing = svg.drawing(parts, HEIGHT, f"Training curves of {name}. " + "; ".join(said))
    legend = _legend(list({id(entry): entry for entry, *_ in series}.values()))
    return Figure("Training loss" if name == "loss" else f"Validation {name}", both, drawing, legend)
