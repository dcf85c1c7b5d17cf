"""The curve of a calibration (`calibrate`): quality kept against speed, as a plot and as the lines of a table.

Every figure shown is a field of the result's `calibration`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llm2slm.evaluation.report.drawing import Plot, canvas, tick_texts, ticks
from llm2slm.evaluation.report.entries import Entry, metric_name
from llm2slm.evaluation.report.tables import MISSING, number, percent, score, times

SHARES = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75)
"""Shares of the points that a short table has, besides the ends of the curve and the chosen points."""
HYBRID, LLM, CHOSEN, LIKELY = "hybrid alone", "LLM for all", "chosen", "likely"


@dataclass(frozen=True)
class Section:
    """One calibration on the page: a plot, a short table, and one of all points."""

    title: str
    text: str
    plot: Plot
    caption: str
    head: list[str]
    lines: list[list[str]]
    all_lines: list[list[str]]


def sections(results: Sequence[Mapping[str, Any]], shown: Sequence[Entry]) -> list[Section]:
    """A section for each result with a calibration."""
    found = [(run, result["calibration"]) for run, result in enumerate(results) if result.get("calibration")]
    made = []
    for run, calibration in found:
        entry = next(entry for entry in shown if entry.run == run and entry.kind == "llm2slm")
        title = "Cascade: quality against speed" + (f", run {run + 1}" if len(results) > 1 else "")
        made.append(
            Section(
                title, verdict(calibration), curve_plot(calibration, entry, title), conditions(calibration),
                head(calibration), lines(calibration, selected(calibration)), lines(calibration, calibration["curve"]),
            )
        )  # fmt: skip
    return made


def selected(calibration: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The points of a short table: the ends, the chosen and the likely one, and those nearest to `SHARES`."""
    curve = calibration["curve"]
    near = [min(curve, key=lambda point: abs(point["share"] - share)) for share in SHARES]
    named = [curve[0], curve[-1], calibration["chosen"], calibration["likely"], *near]
    return [point for point in curve if point in named]


def head(calibration: Mapping[str, Any]) -> list[str]:
    """The headings of `lines`."""
    metric = metric_name(calibration["metric"])
    level = f"{100 * calibration['level']:g} % interval, %"
    return ["", "Threshold", "LLM's share", metric, "Kept", level, "Probability", "ms per answer", "Speedup"]


def lines(calibration: Mapping[str, Any], points: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """One line of texts for each point."""
    found = []
    for point in points:
        names = [
            name
            for name, which in ((HYBRID, calibration["curve"][0]), (LLM, calibration["curve"][-1]),
                                (CHOSEN, calibration["chosen"]), (LIKELY, calibration["likely"]))
            if which == point
        ]  # fmt: skip
        within = MISSING if point["low"] is None else f"{100 * point['low']:.1f}–{100 * point['high']:.1f}"
        found.append(
            [
                ", ".join(names), threshold(point["threshold"]), f"{100 * point['share']:.1f} %",
                score(point["quality"]), percent(point["kept"]).replace("\u00a0", " "), within,
                f"{100 * point['probability']:.0f} %", number(point["ms_per_answer"]), times(point["speedup"]),
            ]
        )  # fmt: skip
    return found


def threshold(value: float | str) -> str:
    """A threshold in the form of the key `cascade`."""
    return f"{float(value):.4g}"


def verdict(calibration: Mapping[str, Any]) -> str:
    """What was found, in sentences."""
    metric, chosen, likely = metric_name(calibration["metric"]), calibration["chosen"], calibration["likely"]
    low, high = map(threshold, calibration["threshold_interval"])
    interval = "" if chosen["low"] is None else (
        f" ({100 * calibration['level']:g} % interval {100 * chosen['low']:.1f} to {100 * chosen['high']:.1f} %)"
    )  # fmt: skip
    requested, sure = f"{100 * calibration['requested']:g} %", f"{100 * calibration['level']:g} %"
    return (
        f"With threshold {threshold(chosen['threshold'])} the LLM writes {100 * chosen['share']:.1f} % of the answers, "
        f"and {100 * chosen['kept']:.1f} % of its {metric} is kept{interval}; {requested} was requested. On "
        f"resamples of the rows the chosen threshold lies between {low} and {high} ({sure} interval), and this one "
        f"keeps {requested} with probability {100 * chosen['probability']:.0f} %. With threshold "
        f"{threshold(likely['threshold'])} (the LLM writes {100 * likely['share']:.1f} %) the probability is "
        f"{100 * likely['probability']:.0f} %."
    )


def conditions(calibration: Mapping[str, Any]) -> str:
    """How the figures were found."""
    costs = calibration["costs"]
    return (
        f"{calibration['rows']:,} rows of {calibration['split']}; {calibration['resamples']:,} bootstrap resamples "
        f"(seed {calibration['seed']}); confidence: {calibration['confidence']} log-probability; expected times: "
        f"hybrid {number(costs['hybrid_ms'])} ms per answer, LLM {number(costs['llm_ms'])}, batch {costs['batch']}, "
        f"{costs['rows']:,} answers timed in one process; a cascade runs the hybrid first, for the LLM's answers too"
    )


def curve_plot(calibration: Mapping[str, Any], entry: Entry, title: str) -> Plot:
    """Quality kept, with its interval, against the expected speedup over the LLM."""
    curve, metric = calibration["curve"], metric_name(calibration["metric"])
    speed = [point["speedup"] for point in curve]
    kept = [100 * point["kept"] for point in curve]
    limits = [100 * point[end] for point in curve for end in ("low", "high") if point[end] is not None]
    x_ticks = ticks(0, max(speed), 6)
    with canvas() as plot:
        values = [*kept, *limits]
        y_ticks = ticks(max(0.0, min(values) - 2), max(values) + 2)
        plot.frame(("expected speedup over the LLM", f"{metric} kept"), y_ticks, "↗", unit=" %")
        marks = list(zip(x_ticks, [f"{text}×" for text in tick_texts(x_ticks)], strict=True))
        plot.x_axis(x_ticks[0], x_ticks[-1], marks)
        for end in ("low", "high"):
            points = [(point["speedup"], 100 * point[end]) for point in curve if point[end] is not None]
            if points:
                plot.line(entry, *zip(*points, strict=True), faint=True)
        plot.line(entry, speed, kept)
        named = ((CHOSEN, calibration["chosen"]), (HYBRID, curve[0]), (LLM, curve[-1]))
        for name, point in named:
            tip = (f"{name}: {100 * point['kept']:.1f} % kept, {times(point['speedup'])} as fast, LLM's share "
                   f"{100 * point['share']:.1f} %")  # fmt: skip
            plot.point(entry, point["speedup"], 100 * point["kept"], tip)
        plot.name_points([(name, point["speedup"], 100 * point["kept"]) for name, point in named])
        caption = f"Strong: quality kept. Faint: {100 * calibration['level']:g} % interval. "
        caption += "Points, from left to right: the LLM for all answers, the chosen threshold, the hybrid alone."
        return plot.finish(title, caption, f"Curve of {metric} kept against speedup.")
