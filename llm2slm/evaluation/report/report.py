"""result.json files as a table in the terminal and as one self-contained HTML page; nothing is computed here.

`page.py` has the frame, style and content security policy that all pages share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm2slm.evaluation.report import cascade, plots, tables
from llm2slm.evaluation.report.drawing import Plot, write_plots
from llm2slm.evaluation.report.entries import ANOTHER, KINDS, Entry, entries, metric_keys, metric_name, validation_keys
from llm2slm.evaluation.report.factor_plots import factor_plots, front_plot
from llm2slm.evaluation.report.factors import sweep_of
from llm2slm.evaluation.report.page import clean, render_page, write_whole
from llm2slm.evaluation.report.sweep_tables import seed_lines, sweep_tables
from llm2slm.types import UserError

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

MAX_TURNED = 4
"""At most so many systems are shown as columns where rows would be too wide."""
_NEEDED = ("verb", "created", "command", "git_commit", "device", "seed", "config_hash", "wall_seconds", "versions")


def terminal_table(
    results: Sequence[Mapping[str, Any]],
    width: int | None = None,
    overrides: Sequence[Mapping[str, str]] | None = None,
) -> Table | Group:
    """One row for each system: parameters, the validation score that selected it, quality, quality kept, latency,
    speedup, memory; without empty columns. Of several results, the best by validation is named below.

    Where that is wider than `width` characters (None: the terminal), up to four systems become the columns; a table of
    more systems is split into several. `overrides` as in `write_report`.

    Raises:
        UserError: no system to show.
    """
    results = clean(list(results))
    shown = entries(results, clean(overrides))
    metrics, monitors = metric_keys(shown), [(result.get("selection") or {}).get("metric") for result in results]
    validation = [key for key in validation_keys(shown) if f"val/{key}" in monitors]
    lines = [["System", "Kind", *(heading for _, heading in tables.columns(metrics, validation))]]
    for entry in shown:
        figures = [cell.text.replace("\u00a0", " ") for cell in tables.cells(entry, metrics, validation)]
        lines.append([entry.label, entry.kind, *figures])
    known = [n for n in range(len(lines[0])) if any(line[n] != tables.MISSING for line in lines[1:])]
    lines = [[line[n] for n in known] for line in lines]
    row = next((entry.row for entry in shown if entry.row), None)
    captions = [text[0].lower() + text[1:-1]] if (text := tables.best(shown, results)) else []
    captions += [tables.conditions(row)] if row else []
    captions += [text[0].lower() + text[1:-1]] if (text := tables.baselines(shown)) else []
    if any(ANOTHER.fullmatch(key) for key in metrics):
        captions.append("metrics with a number have another signature (see result.json) and are not comparable")
    return fitted(lines, "; ".join(captions), width, turn=len(shown) <= MAX_TURNED)


def bucket_table(
    results: Sequence[Mapping[str, Any]],
    width: int | None = None,
    overrides: Sequence[Mapping[str, str]] | None = None,
) -> Table | Group | None:
    """Quality by length: one row for each bucket of each system; None where no result has buckets.

    Where that is wider than `width`, the buckets of a single system become the columns; a table of several systems is
    split into several.

    Raises:
        UserError: no system to show.
    """
    shown = entries(clean(list(results)), clean(overrides))
    metrics, rows = tables.bucket_rows(shown)
    lines = [["System", "Length of", "Words", "Rows", *(metric_name(key) for key in metrics)]]
    for entry, bucket in rows:
        figures = [cell.text.replace("\u00a0", " ") for cell in tables.bucket_cells(bucket, metrics)]
        lines.append([entry.label, bucket["by"], *figures])
    return fitted(lines, "", width, turn=len(shown) == 1, again=3) if rows else None


def seed_table(
    results: Sequence[Mapping[str, Any]],
    width: int | None = None,
    overrides: Sequence[Mapping[str, str]] | None = None,
) -> Table | Group | None:
    """Mean and spread of runs that differ in the seed alone, the best by validation first; None without such runs."""
    results, overrides = clean(list(results)), clean(overrides)
    sweep = sweep_of(entries(results, overrides), results, overrides)
    if sweep is None or not sweep.groups:
        return None
    caption = "mean ± sample standard deviation over the seeds; runs whose validation score is not finite are left out"
    return fitted(seed_lines(sweep), caption, width, turn=False, again=2)


def fitted(
    lines: Sequence[Sequence[str]], caption: str, width: int | None = None, *, turn: bool, again: int = 1
) -> Table | Group:
    """A table with two columns of names, in a shape that fits.

    Args:
        width: in characters; None: the terminal's.
        turn: whether the table may be transposed.
        again: the number of leading columns that every part of a split table repeats.
    """
    from rich.console import Group
    from rich.text import Text

    wide = rich_table(lines, caption, names=2)
    if fits(wide, width):
        return wide
    turned = rich_table([list(line) for line in zip(*lines, strict=True)], caption, names=1)
    if turn and fits(turned, width):
        return turned

    def table(columns: Sequence[int]) -> Table:
        names = sum(column < 2 for column in columns)
        return rich_table([[line[column] for column in columns] for line in lines], "", names)

    parts: list[list[int]] = [[*range(again)]]
    for column in range(again, len(lines[0])):
        if len(parts[-1]) == again or fits(table([*parts[-1], column]), width):
            parts[-1].append(column)
        else:
            parts.append([*range(again), column])
    note = [Text(f"{caption[:1].upper()}{caption[1:]}.\n", style="italic")] if caption else []
    return Group(*map(table, parts), *note)


def fits(table: Table, width: int | None = None) -> bool:
    """Whether a table fits into `width` characters (None: the terminal's)."""
    from rich.console import Console

    console = Console(width=width)
    return console.measure(table, options=console.options.update(max_width=10_000)).maximum <= console.width


def rich_table(lines: Sequence[Sequence[str]], caption: str, names: int) -> Table:
    """A table with the first line as its head; the first `names` columns are left-aligned, the others right-aligned."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    note = Text(f"{caption[:1].upper()}{caption[1:]}.") if caption else None
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True, caption=note, caption_justify="left")
    for number, heading in enumerate(lines[0]):
        table.add_column(Text(heading), justify="left" if number < names else "right", overflow="fold")
    for line in lines[1:]:
        table.add_row(*(Text(words) for words in line))
    return table


def write_report(
    results: Sequence[Mapping[str, Any]],
    folder: Path,
    title: str,
    overrides: Sequence[Mapping[str, str]] | None = None,
    configs: Sequence[str] | None = None,
    *,
    plots: bool = False,
) -> Path:
    """Writes `report.html` into `folder` and returns its path.

    Args:
        results: as `runs.read_result` returns them; several make a report of a sweep.
        folder: created if missing.
        title: heading of the page.
        overrides: for each result, the overridden keys and their values: columns of the table of runs.
        configs: for each result, its resolved configuration as YAML text.
        plots: also writes each plot as SVG and PDF into `folder`/plots.

    Raises:
        UserError: no system to show, or not one of `overrides` for each result.
    """
    text, drawn = page_and_plots(results, title, overrides, configs)
    if plots:
        write_plots(folder / "plots", drawn)
    return write_whole(folder / "report.html", text)


def render(
    results: Sequence[Mapping[str, Any]],
    title: str,
    overrides: Sequence[Mapping[str, str]] | None = None,
    configs: Sequence[str] | None = None,
) -> str:
    """The page as text; see `write_report`."""
    return page_and_plots(results, title, overrides, configs)[0]


def page_and_plots(
    results: Sequence[Mapping[str, Any]],
    title: str,
    overrides: Sequence[Mapping[str, str]] | None = None,
    configs: Sequence[str] | None = None,
) -> tuple[str, list[Plot]]:
    """The page as text, and its plots in their order on the page; see `write_report`."""
    results, overrides, configs = clean(list(results)), clean(overrides), clean(configs)
    shown = entries(results, overrides)
    for run, result in enumerate(results, 1):
        if missing := [key for key in _NEEDED if key not in result]:
            raise UserError(f"report: result {run} lacks {', '.join(missing)}; write it again")
    bucket_metrics, bucket_rows = tables.bucket_rows(shown)
    sweep = sweep_of(shown, results, overrides)
    swept = [*front_plot(sweep), *factor_plots(sweep)] if sweep else []
    figures = [*plots.quality_latency(shown), *plots.latency_split(shown), *plots.by_length(shown)]
    curves, length_figures = plots.training_curves(shown), plots.by_bucket(shown)
    cascades = cascade.sections(results, shown)
    text = render_page(
        "report_page.html",
        title,
        cascades=cascades,
        results=results,
        configs=configs or [],
        figures=figures,
        curves=curves,
        length_figures=length_figures,
        bucket_metrics=bucket_metrics,
        buckets=[(entry, bucket["by"], tables.bucket_cells(bucket, bucket_metrics)) for entry, bucket in bucket_rows],
        timings=[(entry, row) for entry in shown for row in entry.system.get("speed", [])],
        kinds=KINDS,
        sweep=None if sweep is None else sweep_tables(sweep),
        sweep_figures=swept,
        **_table(shown, overrides),
        **_words(shown, results),
    )
    return text, [*swept, *figures, *(section.plot for section in cascades), *length_figures, *curves]


def _table(shown: Sequence[Entry], overrides: Sequence[Mapping[str, str]] | None) -> dict[str, Any]:
    """The table of systems: the overridden keys of each run (if any) before its figures."""
    metrics, validation = metric_keys(shown), validation_keys(shown)
    keys = list(dict.fromkeys(key for chosen in overrides or [] for key in chosen))
    rows = [
        {
            "entry": entry,
            "overrides": [(overrides or [{}] * (entry.run + 1))[entry.run].get(key, tables.MISSING) for key in keys],
            "cells": (own := tables.cells(entry, metrics, validation)),
            "by_key": {cell.key: cell for cell in own},
        }
        for entry in shown
    ]
    return {
        "rows": rows,
        "columns": tables.columns(metrics, validation),
        "override_keys": keys,
        "validated": bool(validation),
    }


def _words(shown: Sequence[Entry], results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The page's text on the systems as a whole."""
    several = len(results) > 1
    scores = {
        (key, score["signature"], score["n"])
        for entry in shown
        for key, score in entry.system.get("quality", {}).items()
    }
    having, sample_rows = tables.samples(shown)
    fact_systems, facts = tables.facts(shown)
    data_columns, data_rows = tables.data_statistics(shown)
    row = next((entry.row for entry in shown if entry.row), None)
    return {
        "verdict": tables.best(shown, results) if several else tables.verdict(shown),
        "conditions": tables.conditions(row) if row else "",
        "baselines": tables.baselines(shown),
        "metrics": metric_keys(shown),
        "scores": sorted(scores),
        "sample_systems": having,
        "samples": sample_rows,
        "fact_systems": fact_systems,
        "facts": facts,
        "data_columns": data_columns,
        "data_rows": data_rows,
        "shown": shown,
        "show_kind": not several or len({entry.kind for entry in shown}) > 1,
    }
