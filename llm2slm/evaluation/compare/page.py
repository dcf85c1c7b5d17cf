"""A comparison as a table in the terminal, as CSV, and as one self-contained page in the report's style.

Every figure is a field of compare.json; nothing is computed here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llm2slm.evaluation.compare.rows import as_csv, page_parts
from llm2slm.evaluation.metrics.scores import lower_is_better, ranked
from llm2slm.evaluation.report import tables
from llm2slm.evaluation.report.drawing import BOTTOM, GRID, SOFT, Plot, canvas, tick_texts, ticks
from llm2slm.evaluation.report.entries import Entry, entries, metric_name
from llm2slm.evaluation.report.page import clean, render_page
from llm2slm.evaluation.report.report import MAX_TURNED, fits, rich_table
from llm2slm.evaluation.report.tables import MISSING, Cell, one_line, shortened

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

COLUMNS = {
    "value": "Score",
    "difference": "Difference",
    "p_bootstrap_holm": "p, bootstrap",
    "p_randomization_holm": "p, randomization",
    "kept": "Kept",
    "speedup": "Speedup",
    "parameters": "Parameters",
    "peak_memory_mb": "Peak MB",
}
"""Heading of each column of figures."""
OF_THE_SYSTEM = ("speedup", "parameters", "peak_memory_mb")
"""Columns with one value for all metrics of a system."""
SIGNIFICANT = 0.05
LEAST = 0.001
"""The smallest p-value that is shown as a number."""
SENTENCES = 6


def flat_rows(comparison: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row for each system and metric with all figures; None where missing."""
    rows = []
    for system in comparison["systems"]:
        timed = system["speed"][0] if system["speed"] else {}
        speedup = timed.get("speedup") or {}
        for metric, score in system["quality"].items():
            own = system["compared"][metric]
            difference, kept = own["difference"] or {}, own["kept"] or {}
            p_values = [f"p_{test}{holm}" for test in ("bootstrap", "randomization") for holm in ("", "_holm")]
            rows.append(
                {
                    "system": system["name"],
                    "kind": system["kind"],
                    "baseline": system["name"] == comparison["baseline"],
                    "metric": metric,
                    "value": score["value"],
                    "low": own["low"],
                    "high": own["high"],
                    "difference": difference.get("value"),
                    "difference_low": difference.get("low"),
                    "difference_high": difference.get("high"),
                    **{name: difference.get(name) for name in p_values},
                    "kept": kept.get("value"),
                    "kept_low": kept.get("low"),
                    "kept_high": kept.get("high"),
                    "speedup": speedup.get("median"),
                    "speedup_min": speedup.get("min"),
                    "speedup_max": speedup.get("max"),
                    "parameters": system["parameters"].get("total"),
                    "trainable": system["parameters"].get("trainable"),
                    "peak_memory_mb": timed.get("peak_memory_mb"),
                    "rows": score["n"],
                    "signature": score["signature"],
                    "run": system["run"],
                }
            )
    return rows


def csv_text(comparison: Mapping[str, Any]) -> str:
    """`flat_rows` as CSV; an empty field for a missing figure."""
    rows = flat_rows(comparison)
    return as_csv(list(rows[0]), rows)


def cells(row: Mapping[str, Any], decimals: int) -> dict[str, Cell]:
    """The columns of figures of one flat row, with intervals as remarks."""

    def plain(value: float | None) -> str:
        return MISSING if value is None else f"{value:,.{decimals}f}".replace("-", "−")

    def signed(value: float | None) -> str:
        return MISSING if value is None else f"{value:+,.{decimals}f}".replace("-", "−")

    def ends(name: str, write: Any) -> str:
        low, high = row[f"{name}low"], row[f"{name}high"]
        return "" if low is None else f"[{write(low)}, {write(high)}]"

    def cell(key: str, text: str, remark: str = "") -> tuple[str, Cell]:
        return key, Cell(key, text, row[key], remark)

    def p(test: str) -> tuple[str, Cell]:
        own, corrected = probability(row[f"p_{test}"]), probability(row[f"p_{test}_holm"])
        return cell(f"p_{test}_holm", corrected, "" if own == corrected else f"uncorrected {own}")

    speedup = "" if row["speedup"] is None else f"{row['speedup_min']:.2f}–{row['speedup_max']:.2f}"
    return dict(
        [
            cell("value", plain(row["value"]), ends("", plain)),
            cell("difference", signed(row["difference"]), ends("difference_", signed)),
            p("bootstrap"),
            p("randomization"),
            cell("kept", tables.percent(row["kept"]), ends("kept_", tables.percent)),
            cell("speedup", tables.times(row["speedup"]), speedup),
            cell("parameters", tables.count(row["parameters"])),
            cell("peak_memory_mb", tables.number(row["peak_memory_mb"])),
        ]
    )


def probability(p: float | None) -> str:
    """A p-value with three decimals; a very small one as an upper bound."""
    if p is None:
        return MISSING
    return f"<{LEAST}" if p < LEAST else f"{p:.3f}"


def decimals_of(rows: Sequence[Mapping[str, Any]], metric: str) -> int:
    """Decimals of a metric in all its figures: three if all its values are below 10, otherwise two."""
    return 2 if max(abs(row["value"]) for row in rows if row["metric"] == metric) >= 10 else 3


Figures = Sequence[Mapping[str, Cell]]


def terminal_table(comparison: Mapping[str, Any], width: int | None = None) -> Group:
    """One row for each system and metric, without empty columns.

    Where that is wider than `width` characters (None: the terminal), up to four systems become the columns; a table of
    more systems is split into several.
    """
    from rich.console import Group
    from rich.text import Text

    comparison = clean(comparison)
    rows = flat_rows(comparison)
    figures = [cells(row, decimals_of(rows, row["metric"])) for row in rows]
    known = [key for key in COLUMNS if any(own[key].value is not None for own in figures)]
    caption = "\n".join(comparison["notes"]).removesuffix(".")
    wide = rich_table(_wide(rows, figures, known), caption, names=2)
    if fits(wide, width):
        return Group(wide)
    if len(comparison["systems"]) <= MAX_TURNED:
        return Group(rich_table(_turned(rows, figures, known), caption, names=1))
    return Group(*_parts(rows, figures, known, width), Text(f"{caption}.\n", style="italic"))


def _parts(rows: Sequence[Mapping[str, Any]], figures: Figures, known: Sequence[str], width: int | None) -> list[Table]:
    """The columns in as few tables as fit; each has at least one."""

    def table(keys: Sequence[str]) -> Table:
        return rich_table(_wide(rows, figures, keys), "", names=2 - _only_of_system(keys))

    parts: list[list[str]] = []
    for key in known:
        if parts and fits(table([*parts[-1], key]), width):
            parts[-1].append(key)
        else:
            parts.append([key])
    return [table(keys) for keys in parts]


def _only_of_system(keys: Sequence[str]) -> bool:
    return all(key in OF_THE_SYSTEM for key in keys)


def _wide(rows: Sequence[Mapping[str, Any]], figures: Figures, known: Sequence[str]) -> list[list[str]]:
    """Lines of the table with one line per system and metric; per system, if no column depends on the metric."""
    only_of_system = _only_of_system(known)
    lines, last = [["System", *([] if only_of_system else ["Metric"]), *(COLUMNS[key] for key in known)]], None
    for row, own in zip(rows, figures, strict=True):
        first, last = row["system"] != last, row["system"]
        texts = ["" if key in OF_THE_SYSTEM and not first else " ".join(_texts_of(own[key])) for key in known]
        if first or not only_of_system:
            lines.append(
                [_name(row) if first else "", *([] if only_of_system else [metric_name(row["metric"])]), *texts]
            )
    return lines


def _turned(rows: Sequence[Mapping[str, Any]], figures: Figures, known: Sequence[str]) -> list[list[str]]:
    """Lines of the table with a column for each system: metric by metric, then the columns of the whole system."""
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    by_metric = {
        metric: [own for row, own in zip(rows, figures, strict=True) if row["metric"] == metric] for metric in metrics
    }
    lines = [["", *(_name(row) for row in rows if row["metric"] == metrics[0])]]
    for metric, systems in by_metric.items():
        for key in [key for key in known if key not in OF_THE_SYSTEM]:
            texts = [_texts_of(own[key]) for own in systems]
            heading = metric_name(metric) if key == "value" else f"  {COLUMNS[key].lower()}"
            lines.append([heading, *(text[0] for text in texts)])
            if any(len(text) > 1 for text in texts):
                lines.append(["", *(text[1] if len(text) > 1 else "" for text in texts)])
    for key in [key for key in known if key in OF_THE_SYSTEM]:
        lines.append([COLUMNS[key], *(_texts_of(own[key])[0] for own in by_metric[metrics[0]])])
    return lines


def _name(row: Mapping[str, Any]) -> str:
    return f"{row['system']} (baseline)" if row["baseline"] else str(row["system"])


def _texts_of(cell: Cell) -> list[str]:
    """A figure and, of scores and differences, its interval."""
    intervals = [cell.remark] if cell.remark and cell.key in ("value", "difference") else []
    return [text.replace("\u00a0", " ") for text in (cell.text, *intervals)]


def verdict(comparison: Mapping[str, Any]) -> list[str]:
    """A sentence for each of the first systems: its difference to the baseline in the first metric and whether both
    tests find it significant; and one that counts the other systems."""
    rows, baseline = flat_rows(comparison), comparison["baseline"]
    metric = rows[0]["metric"]
    decimals = decimals_of(rows, metric)
    sentences = []
    others = [row for row in rows if row["metric"] == metric and not row["baseline"]]
    for row in others[:SENTENCES]:
        figure = cells(row, decimals)["difference"]
        largest = max(row["p_bootstrap_holm"], row["p_randomization_holm"])
        p = probability(largest) if largest < LEAST else f"= {probability(largest)}"
        figures = f"{figure.text} {metric_name(metric)} {figure.remark}, p {p}."
        if largest >= SIGNIFICANT:
            sentences.append(f"No significant difference between {row['system']} and {baseline}: {figures}")
        elif not ranked(metric):
            sentences.append(f"{row['system']} differs from {baseline}: {figures}")
        else:
            better = (row["difference"] > 0) != lower_is_better(metric)
            sentences.append(f"{row['system']} is {'better' if better else 'worse'} than {baseline}: {figures}")
    if (more := len(others) - SENTENCES) > 0:
        sentences.append(f"The table has {more} more system{'s' if more > 1 else ''}.")
    return sentences


def render(comparison: Mapping[str, Any]) -> str:
    """The page as text."""
    return page_and_plots(comparison)[0]


def page_and_plots(comparison: Mapping[str, Any]) -> tuple[str, list[Plot]]:
    """The page as text, and its plots in their order on the page."""
    comparison = clean(comparison)
    rows = flat_rows(comparison)
    metrics = dict.fromkeys(row["metric"] for row in rows)
    shown = {entry.label: entry for entry in entries([comparison])}
    figures = [cells(row, decimals_of(rows, row["metric"])) for row in rows]
    known = [key for key in COLUMNS if any(own[key].value is not None for own in figures)]
    groups = [
        {
            "entry": entry,
            "baseline": label == comparison["baseline"],
            "lines": [
                {"metric": row["metric"], "cells": [own[key] for key in known]}
                for row, own in zip(rows, figures, strict=True)
                if row["system"] == label
            ],
        }
        for label, entry in shown.items()
    ]
    drawn = [figure for metric in metrics for figure in plot(rows, metric, shown)]
    text = render_page(
        "comparison_page.html",
        f"Compared with {comparison['baseline']}",
        result=comparison,
        groups=groups,
        columns=[(key, COLUMNS[key]) for key in known],
        once=OF_THE_SYSTEM,
        shown=list(shown.values()),
        verdict=" ".join(verdict(comparison)),
        figures=drawn,
        signatures={row["metric"]: row["signature"] for row in rows},
        texts=page_parts(comparison, shown),
    )
    return text, drawn


def plot(rows: Sequence[Mapping[str, Any]], metric: str, shown: Mapping[str, Entry]) -> list[Plot]:
    """Each system's difference to the baseline in one metric, with its interval; none where it is not finite."""
    others = [row for row in rows if row["metric"] == metric and not row["baseline"]]
    ends = [row[key] for row in others for key in ("difference_low", "difference_high")]
    if not all(math.isfinite(end) for end in ends):
        return []
    pitch, name, decimals = 46.0, metric_name(metric), decimals_of(rows, metric)
    height, x_ticks = 12 + pitch * len(others), ticks(min(0.0, *ends), max(0.0, *ends), 6)
    with canvas(height + BOTTOM, left=12, right=12, top=4) as drawn:
        axes = drawn.axes  # y in points from the top
        axes.set_ylim(height - 4, 0)
        axes.set_yticks([])
        axes.spines["bottom"].set_visible(False)
        axes.vlines(x_ticks, 0, height - 4, [GRID if value else SOFT for value in x_ticks], lw=1, clip_on=False)
        axes.tick_params(length=0)
        axes.set_xlabel(f"{name} minus the baseline’s", loc="right")
        drawn.x_axis(x_ticks[0], x_ticks[-1], list(zip(x_ticks, tick_texts(x_ticks), strict=True)))
        for index, row in enumerate(others):
            entry, y = shown[row["system"]], pitch * index + 38
            figure = cells(row, decimals)["difference"]
            tip = f"{entry.label}: {figure.text} {figure.remark}"
            axes.annotate(shortened(one_line(tip), 58), (x_ticks[0], y - 12), weight="bold")
            drawn.whisker(entry, row["difference_low"], row["difference_high"], y)
            drawn.point(entry, row["difference"], y, tip)
        caption = (  # no claim where an interval excludes 0: it covers neither the other test nor the other systems
            "95 % bootstrap intervals, uncorrected for the number of systems; whether a difference is significant is "
            "decided by the larger of the table’s two p-values."
        )
        return [drawn.finish(f"{name}: difference to the baseline", caption, f"{name} minus the baseline’s.")]
