"""result.json files as a table in the terminal and as one self-contained HTML page; nothing is computed anew.

The page asks the network for nothing: style, script and plots are inline, and its Content-Security-Policy allows
exactly the one style sheet and the one script whose hashes it carries. All text of results is escaped by the
template engine; the page works without JavaScript (which only sorts tables).
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm2slm.evaluation import plots, tables
from llm2slm.evaluation.entries import KINDS, Entry, entries, metric_keys, metric_name
from llm2slm.types import UserError

if TYPE_CHECKING:
    from rich.table import Table

MAX_TURNED = 4
"""Systems that are shown as columns where rows would be too wide."""
_NEEDED = ("verb", "created", "command", "git_commit", "device", "seed", "config_hash", "wall_seconds", "versions")
_CONTROL = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {0x7F: 0x2421}
_SURROGATES = dict.fromkeys(range(0xD800, 0xE000), 0xFFFD)
_VISIBLE = _CONTROL | _SURROGATES


def clean(value: Any) -> Any:
    """The same containers with control characters in strings made visible, and lone surrogates replaced."""
    if isinstance(value, str):
        return value.replace("\r\n", "\n").translate(_VISIBLE)
    if isinstance(value, Mapping):
        return {clean(key): clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean(item) for item in value]
    return value


def terminal_table(
    results: Sequence[Mapping[str, Any]],
    width: int | None = None,
    overrides: Sequence[Mapping[str, str]] | None = None,
) -> Table:
    """One row for each system: parameters, quality, what is kept of the LLM's, latency, speedup, memory; of these, what
    is known of any of them.

    Where that is wider than `width` characters (None: the terminal), up to four systems are the columns instead.
    `overrides` tell the runs of a sweep apart, as in `write_report`.

    Raises:
        UserError: no system to show.
    """
    from rich.console import Console

    shown = entries(clean(list(results)), clean(overrides))
    metrics = metric_keys(shown)
    lines = [["System", "Kind", *(heading for _, heading in tables.columns(metrics))]]
    for entry in shown:
        figures = [cell.text.replace("\u00a0", " ") for cell in tables.cells(entry, metrics)]
        lines.append([entry.label, entry.kind, *figures])
    known = [n for n in range(len(lines[0])) if any(line[n] != tables.MISSING for line in lines[1:])]
    lines = [[line[n] for n in known] for line in lines]
    row = next((entry.row for entry in shown if entry.row), None)
    caption = tables.conditions(row) if row else ""
    wide = _rich_table(lines, caption, names=2)
    console = Console(width=width)
    fits = console.measure(wide, options=console.options.update(max_width=10_000)).maximum <= console.width
    return (
        wide
        if fits or len(shown) > MAX_TURNED
        else _rich_table([list(line) for line in zip(*lines, strict=True)], caption, names=1)
    )


def _rich_table(lines: Sequence[Sequence[str]], caption: str, names: int) -> Table:
    """A table whose first line is its head, its first `names` columns set left and the others right."""
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
) -> Path:
    """Writes `report.html` into `folder` and returns its path.

    Args:
        results: what `runs.read_result` returned; several make a report of a sweep.
        folder: made if it is not there.
        title: heading of the page.
        overrides: for each result, the overridden keys and their values: columns of the table of runs.
        configs: for each result, its resolved configuration as YAML text.

    Raises:
        UserError: no system to show, or not one of `overrides` for each result.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "report.html"
    partial = path.with_suffix(".html.part")
    partial.write_text(render(results, title, overrides, configs), encoding="utf-8")
    partial.replace(path)
    return path


def render(
    results: Sequence[Mapping[str, Any]],
    title: str,
    overrides: Sequence[Mapping[str, str]] | None = None,
    configs: Sequence[str] | None = None,
) -> str:
    """The page as text; see `write_report`."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    own = files("llm2slm.evaluation")
    page, style, script = (
        own.joinpath(f"report_page.{end}").read_text(encoding="utf-8") for end in ("html", "css", "js")
    )
    results, overrides, configs = clean(list(results)), clean(overrides), clean(configs)
    shown = entries(results, overrides)
    for run, result in enumerate(results, 1):
        if missing := [key for key in _NEEDED if key not in result]:
            raise UserError(f"report: result {run} lacks {', '.join(missing)}; write it again")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(
        metric=metric_name, number=tables.number, tokens=tables.length, percent=tables.percent, times=tables.times,
        count=tables.count, seconds=tables.seconds, spread=tables.spread, fact=_fact, markup=Markup,
    )  # fmt: skip
    figures = [*plots.quality_latency(shown), *plots.latency_split(shown), *plots.by_length(shown)]
    return environment.from_string(page).render(
        title=clean(title),
        policy=_policy(style, script),
        style=Markup(style),
        script=Markup(script),
        results=results,
        configs=configs or [],
        figures=figures,
        curves=plots.training_curves(shown),
        timings=[(entry, row) for entry in shown for row in entry.system.get("speed", [])],
        kinds=KINDS,
        **_table(shown, overrides),
        **_words(shown, len(results) > 1),
    )


def _policy(style: str, script: str) -> str:
    """Nothing may be loaded; only this very style sheet and this very script may act."""

    def digest(text: str) -> str:
        return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

    return (
        f"default-src 'none'; style-src 'sha256-{digest(style)}'; script-src 'sha256-{digest(script)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def _table(shown: Sequence[Entry], overrides: Sequence[Mapping[str, str]] | None) -> dict[str, Any]:
    """The table of systems: the overridden keys of each run (if any) before its figures."""
    metrics = metric_keys(shown)
    keys = list(dict.fromkeys(key for chosen in overrides or [] for key in chosen))
    rows = [
        {
            "entry": entry,
            "overrides": [(overrides or [{}] * (entry.run + 1))[entry.run].get(key, tables.MISSING) for key in keys],
            "cells": (own := tables.cells(entry, metrics)),
            "by_key": {cell.key: cell for cell in own},
        }
        for entry in shown
    ]
    return {"rows": rows, "columns": tables.columns(metrics), "override_keys": keys}


def _words(shown: Sequence[Entry], several: bool) -> dict[str, Any]:
    """What the page says of the systems as a whole."""
    scores = {
        (key, score["signature"], score["n"])
        for entry in shown
        for key, score in entry.system.get("quality", {}).items()
    }
    having, sample_rows = tables.samples(shown)
    row = next((entry.row for entry in shown if entry.row), None)
    return {
        "verdict": tables.best(shown) if several else tables.verdict(shown),
        "conditions": tables.conditions(row) if row else "",
        "metrics": metric_keys(shown),
        "scores": sorted(scores),
        "sample_systems": having,
        "samples": sample_rows,
        "note_keys": list(dict.fromkeys(key for entry in shown for key in entry.system.get("notes") or {})),
        "shown": shown,
        "show_kind": not several or len({entry.kind for entry in shown}) > 1,
    }


def _fact(value: Any) -> str:
    """A plain fact of a run's notes as text."""
    if value is None or isinstance(value, bool):
        return {None: tables.MISSING, True: "yes", False: "no"}[value]
    if isinstance(value, int | float):
        return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_fact(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(_fact(item) for item in value)
    return str(value)
