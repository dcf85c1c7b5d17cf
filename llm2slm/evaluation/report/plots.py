"""The plots of the report: quality against latency and by length, latency split, speedup by response length, training
curves.

Each function returns the plots that the results have the values for. Values that are not finite are left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llm2slm.evaluation.metrics.scores import lower_is_better
from llm2slm.evaluation.report.drawing import (
    BOTTOM,
    COLOURS,
    GRID,
    HEIGHT,
    INK,
    SOFT,
    Plot,
    canvas,
    tick_texts,
    ticks,
)
from llm2slm.evaluation.report.entries import Entry, metric_keys, metric_name
from llm2slm.evaluation.report.tables import (
    length,
    number,
    one_line,
    score,
    sentence,
    shared_conditions,
    shortened,
    times,
)

MAX_PANELS = 6
MAX_BANDS = 4


def _finite(*values: Any) -> bool:
    return all(isinstance(value, int | float) and math.isfinite(value) for value in values)


def _legend(shown: Sequence[Entry]) -> list[tuple[str, str]]:
    return [(entry.style, entry.label) for entry in shown]


def enclosing(values: Sequence[float]) -> list[float]:
    """Ticks around values, with a margin."""
    margin = (max(values) - min(values)) * 0.08 or abs(max(values)) * 0.02 or 1.0
    return ticks(min(values) - margin, max(values) + margin)


def _marks(values: Sequence[float]) -> list[tuple[float, str]]:
    return list(zip(values, tick_texts(values), strict=True))


def quality_latency(shown: Sequence[Entry]) -> list[Plot]:
    """The first metric against the time of a whole response; a bar spans the fastest and slowest round."""
    metrics = metric_keys(shown)
    points: list[tuple[Entry, float, Mapping[str, float]]] = []
    for entry in shown:
        value = entry.system.get("quality", {}).get(metrics[0], {}).get("value") if metrics else None
        if value is not None and entry.row and _finite(value, *entry.row["total_ms"].values()):
            points.append((entry, value, entry.row["total_ms"]))
    if not points:
        return []
    name, x_ticks = metric_name(metrics[0]), ticks(0, max(total["max"] for *_, total in points), 6)
    with canvas() as plot:
        y_ticks = enclosing([value for _, value, _ in points])
        better = "↙" if lower_is_better(metrics[0]) else "↖"
        plot.frame(("time of a whole response, ms", name), y_ticks, better)
        plot.x_axis(x_ticks[0], x_ticks[-1], _marks(x_ticks))
        for entry, value, total in points:
            plot.whisker(entry, total["min"], total["max"], value)
            tip = f"{entry.label}: {name} {score(value)}, {number(total['median'])} ms"
            plot.point(entry, total["median"], value, tip)
        names = [(shortened(one_line(entry.label), 30), total["median"], value) for entry, value, total in points]
        legend = [] if plot.name_points(names) else _legend([entry for entry, *_ in points])
        caption = f"{sentence(shared_conditions([entry for entry, *_ in points]))} Whiskers: fastest to slowest round."
        label = f"Scatter plot of {name} against milliseconds."
        return [plot.finish("Quality against latency", caption, label, legend)]


def latency_split(shown: Sequence[Entry]) -> list[Plot]:
    """Bars of the time until the first response token and of the rest of the response."""
    timed = [
        (entry, entry.row["prefill_ms"], entry.row["total_ms"])
        for entry in shown
        if entry.row and _finite(*entry.row["prefill_ms"].values(), *entry.row["total_ms"].values())
    ]
    if not timed:
        return []
    pitch = min(66.0, max(46.0, (HEIGHT - 60) / len(timed)))
    height = max(HEIGHT, 8 + pitch * len(timed) + BOTTOM)
    x_ticks = ticks(0, max(total["max"] for *_, total in timed), 6)
    with canvas(height, left=6, right=52, top=8) as plot:
        axes, space = plot.axes, height - 8 - BOTTOM  # y in points from the top
        axes.set_ylim(space, 0)
        axes.set_yticks([])
        axes.spines[["left", "bottom"]].set_visible(False)
        axes.vlines(x_ticks, 0, space, [SOFT, *[GRID] * (len(x_ticks) - 1)], lw=1, clip_on=False)
        axes.tick_params(length=0)
        axes.set_xlabel("ms for a whole response", loc="right")
        plot.x_axis(0, x_ticks[-1], _marks(x_ticks))
        for index, (entry, prefill, total) in enumerate(timed):
            y, colour = (space - pitch * len(timed)) / 2 + pitch * index + 20, COLOURS[entry.style]
            tip = f"{entry.label}: prefill {number(prefill['median'])} ms, whole response {number(total['median'])} ms"
            first, end, bar = min(prefill["median"], total["median"]), total["median"], plot.tip(tip)
            axes.annotate(
                shortened(" ".join(entry.label.split()), 56),
                (0, y - 4),
                (4, 0),
                textcoords="offset points",
                weight="bold",
            )
            axes.barh(y + 10, end, 20, color=colour, alpha=0.36, clip_on=False, gid=bar)
            axes.barh(y + 10, first, 20, color=colour, clip_on=False, gid=bar)
            axes.hlines(y + 10, total["min"], total["max"], INK, lw=1.2, alpha=0.7, clip_on=False)
            axes.annotate(
                number(end), (total["max"], y + 14), (6, 0), textcoords="offset points", weight="bold", clip_on=False
            )
        legend = [
            ("swatch-prefill", "prefill: up to the first token"),
            ("swatch-decode", "decode: all later tokens"),
        ]
        caption = "At the end of each bar, the median time of the whole response; thin line: fastest to slowest round."
        label = "Bars of milliseconds for prefill and for the whole response."
        return [plot.finish("Where the time goes", caption, label, legend)]


@dataclass(frozen=True)
class _Measure:
    """A figure of speed rows drawn against response length."""

    key: str
    title: str
    axis: str
    unit: str
    write: Callable[[float], str]


SPEEDUP = _Measure("speedup", "Speedup by response length", "speedup over the baseline", "×", times)
LATENCY = _Measure("total_ms", "Latency by response length", "time of a whole response, ms", "", number)


def by_length(shown: Sequence[Entry]) -> list[Plot]:
    """Speedup and latency against response length, a panel of each for each batch size and prompt length."""
    panels: dict[tuple[Any, ...], dict[int, list[Mapping[str, Any]]]] = {}
    for index, entry in enumerate(shown):
        for row in entry.system.get("speed", []):
            if row["lengths"] != "test" and _finite(row["response_tokens"], row["prompt_tokens"]):
                panel = (row["batch"], row["prompt_tokens"])
                panels.setdefault(panel, {}).setdefault(index, []).append(row)
    panels = {key: panel for key, panel in panels.items() if any(len(rows) > 1 for rows in panel.values())}
    drawn = [
        _length_panel(shown, measure, panel, len(panels) > 1)
        for panel in list(panels.values())[:MAX_PANELS]
        for measure in (SPEEDUP, LATENCY)
    ]
    return [plot for plot in drawn if plot is not None]


def _length_panel(
    shown: Sequence[Entry], measure: _Measure, panel: Mapping[int, Sequence[Mapping[str, Any]]], many: bool
) -> Plot | None:
    lines = []
    for index, measured in panel.items():
        rows = [row for row in measured if row.get(measure.key) and _finite(*row[measure.key].values())]
        if rows:
            lines.append((shown[index], sorted(rows, key=lambda row: float(row["response_tokens"]))))
    if not lines:
        return None
    first, bands = lines[0][1][0], len(lines) <= MAX_BANDS  # more bands hide each other
    lengths = sorted({row["response_tokens"] for _, rows in lines for row in rows})
    with canvas(left=60, right=30) as plot:
        y_ticks = ticks(0, max(row[measure.key]["max"] for _, rows in lines for row in rows))
        plot.frame(("response length, tokens (log scale)", measure.axis), y_ticks, unit=measure.unit)
        plot.x_axis(lengths[0], lengths[-1], [(value, f"{value:g}") for value in lengths], log=lengths[0] > 0)
        if measure is SPEEDUP:
            plot.axes.axhline(1, color=INK, lw=1, alpha=0.5, ls="--")
        for entry, rows in lines:
            x = [row["response_tokens"] for row in rows]
            low, median, high = ([row[measure.key][end] for row in rows] for end in ("min", "median", "max"))
            if bands:
                plot.axes.fill_between(x, low, high, color=COLOURS[entry.style], alpha=0.14, lw=0, clip_on=False)
            plot.line(entry, x, median)
            for tokens, value in zip(x, median, strict=True):
                tip = f"{entry.label}: {measure.write(value)}{'' if measure.unit else ' ms'} at {length(tokens)} tokens"
                plot.point(entry, tokens, value, tip, size=7.6)
        where = f"batch {first['batch']}, {length(first['prompt_tokens'])} prompt tokens"
        several = measure is SPEEDUP and len({entry.run for entry, _ in lines}) > 1
        caption = sentence(where)
        caption += _break_even(lines) if measure is SPEEDUP else ""
        caption += " Band: smallest to largest of all rounds." if bands else ""
        caption += " Each run relative to the baseline of that run." if several else ""
        title = measure.title + (f": {where}" if many else "")
        return plot.finish(title, caption, f"Line plot, {measure.title}.", _legend([entry for entry, _ in lines]))


def _break_even(lines: Sequence[tuple[Entry, Sequence[Mapping[str, Any]]]]) -> str:
    """A sentence on the shortest responses for which systems are faster than the baseline."""
    known = [(entry.label, rows[-1].get("break_even_tokens")) for entry, rows in lines]
    texts = [f"{label} from {length(tokens)} token{'' if tokens == 1 else 's'}" for label, tokens in known if tokens]
    return f" Dashed: as fast as the baseline. Faster: {', '.join(texts)}." if texts else ""


def by_batch(shown: Sequence[Entry]) -> list[Plot]:
    """Tokens per second against batch size, at the longest responses of the grid and one prompt length."""
    lines: list[tuple[Entry, list[Mapping[str, Any]]]] = []
    grid = [row for entry in shown for row in entry.system.get("speed", []) if row["lengths"] == "grid"]
    if len({row["batch"] for row in grid}) < 2:
        return []
    longest, prompt = max(row["response_tokens"] for row in grid), grid[0]["prompt_tokens"]
    for entry in shown:
        rows = [row for row in entry.system.get("speed", []) if row in grid and row["response_tokens"] == longest]
        rows = [
            row for row in rows if abs(row["prompt_tokens"] - prompt) < 1 and _finite(*row["tokens_per_s"].values())
        ]
        if rows:
            lines.append((entry, sorted(rows, key=lambda row: int(row["batch"]))))
    if not lines:
        return []
    batches = sorted({row["batch"] for _, rows in lines for row in rows})
    with canvas(left=60, right=30) as plot:
        y_ticks = ticks(0, max(row["tokens_per_s"]["max"] for _, rows in lines for row in rows))
        plot.frame(("batch size (log scale)", "tokens per second"), y_ticks)
        plot.x_axis(batches[0], batches[-1], [(value, f"{value:g}") for value in batches], log=True)
        for entry, rows in lines:
            plot.line(entry, [row["batch"] for row in rows], [row["tokens_per_s"]["median"] for row in rows])
            for row in rows:
                value = row["tokens_per_s"]["median"]
                tip = f"{entry.label}: {number(value)} tokens per second at batch {row['batch']}"
                plot.point(entry, row["batch"], value, tip, size=7.6)
        caption = sentence(f"{length(prompt)} prompt and {length(longest)} response tokens, all rows of a batch")
        legend = _legend([entry for entry, _ in lines])
        return [plot.finish("Throughput by batch size", caption, "Line plot of tokens per second.", legend)]


def by_bucket(shown: Sequence[Entry]) -> list[Plot]:
    """The first metric by the words of the prompt, and by those of the response."""
    metrics = metric_keys(shown)
    plots = [_bucket_panel(shown, by, metrics[0]) for by in ("prompt", "response") if metrics]
    return [plot for plot in plots if plot is not None]


def _bucket_panel(shown: Sequence[Entry], by: str, metric: str) -> Plot | None:
    """Each bucket is a bar from its shortest to its longest row, with a point in the middle; lines join the points."""
    lines = []
    for entry in shown:
        buckets = [(b, b["quality"].get(metric)) for b in entry.system.get("buckets") or [] if b["by"] == by]
        points = sorted((max(b["low"], 1), max(b["high"], 1), value, b["n"]) for b, value in buckets if _finite(value))
        if points:
            lines.append((entry, points))
    if not lines:
        return None
    name = metric_name(metric)
    ends = sorted({end for _, points in lines for low, high, *_ in points for end in (low, high)})
    with canvas(left=60, right=30) as plot:
        y_ticks = enclosing([value for _, points in lines for *_, value, _ in points])
        better = "↓" if lower_is_better(metric) else "↑"
        plot.frame((f"{by} length, words (log scale)", name), y_ticks, better)
        plot.x_axis(ends[0], ends[-1], [(end, f"{end:,}") for end in ends], log=True)
        for entry, points in lines:
            middles = [math.sqrt(low * high) for low, high, *_ in points]
            plot.line(entry, middles, [value for *_, value, _ in points])
            for middle, (low, high, value, n) in zip(middles, points, strict=True):
                plot.whisker(entry, low, high, value, caps=False)
                tip = f"{entry.label}: {name} {score(value)} on {n:,} rows of {low} to {high} words"
                plot.point(entry, middle, value, tip, size=7.6)
        counted = "prompt" if by == "prompt" else "reference"
        caption = (
            f"Rows by the words of their {counted}, cut at the quartiles of the split. Bars: from the shortest to the "
            "longest row."
        )
        title, legend = f"{name} by {by} length", _legend([entry for entry, _ in lines])
        return plot.finish(title, caption, f"Line plot of {name} by {by} length.", legend)


def training_curves(shown: Sequence[Entry]) -> list[Plot]:
    """Loss (training faint, validation strong), then every other validation metric, by optimizer step."""
    keys = list(dict.fromkeys(key for entry in shown for point in entry.system.get("curve", []) for key in point))
    panels = [["train/loss", "val/loss"]] + [[key] for key in keys if key.startswith("val/") and key != "val/loss"]
    plots = [_curve_panel(shown, [key for key in panel if key in keys]) for panel in panels[:MAX_PANELS]]
    return [plot for plot in plots if plot is not None]


def _curve_panel(shown: Sequence[Entry], keys: Sequence[str]) -> Plot | None:
    series = []
    for entry in shown:
        for key in keys:
            curve = [(p["step"], p[key]) for p in entry.system.get("curve", []) if key in p and "step" in p]
            if points := sorted((step, value) for step, value in curve if _finite(step, value)):
                series.append((entry, key, points))
    if not series:
        return None
    values = [value for *_, points in series for _, value in points]
    name = "loss" if keys[-1].endswith("loss") else metric_name(keys[-1].removeprefix("val/"))
    unit = "cross-entropy, nats per token" if name == "loss" else f"validation {name}"
    x_ticks = ticks(0, max(1, *(step for *_, points in series for step, _ in points)), 6)
    with canvas() as plot:
        low = min(values) if min(values) == max(values) else min(0.0, *values)
        plot.frame(("optimizer step", unit), ticks(low, max(values)))
        plot.x_axis(0, x_ticks[-1], _marks(x_ticks))
        for entry, key, points in series:
            faint = key == "train/loss"
            plot.line(entry, *zip(*points, strict=True), faint=faint)
            if not faint and len(points) <= 40:
                for step, value in points:
                    tip = f"{entry.label}: {key} {score(value)} at step {step:,.0f}"
                    plot.point(entry, step, value, tip, size=6, fact=False)
            plot.facts.append(f"{entry.label}, {key}: from {score(points[0][1])} to {score(points[-1][1])}")
        caption = "Strong: validation. Faint: training batches." if len({key for _, key, _ in series}) > 1 else ""
        legend = _legend(list({id(entry): entry for entry, *_ in series}.values()))
        title = "Training loss" if name == "loss" else f"Validation {name}"
        return plot.finish(title, caption, f"Training curves of {name}.", legend)
