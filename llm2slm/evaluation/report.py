"""result.json files as a table in the terminal and as one self-contained HTML page; nothing is computed anew.

The page asks the network for nothing: style, script and plots are inline, and its Content-Security-Policy allows exactly
the one style sheet and the one script whose hashes it carries. All text of results is escaped by the template engine;
it works without JavaScript (which only sorts tables).
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm2slm.evaluation import plots, tables
from llm2slm.evaluation.tables import Entry

if TYPE_CHECKING:
    from rich.table import Table

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


def terminal_table(results: Sequence[Mapping[str, Any]]) -> Table:
    """One row for each system: parameters, quality, what is kept of the LLM's, latency, speedup, memory.

    Raises:
        UserError: no system to show.
    """
    from rich.table import Table
    from rich.text import Text

    shown = tables.entries(clean(list(results)))
    metrics = tables.metric_keys(shown)
    row = next((entry.row for entry in shown if entry.row), None)
    caption = tables.conditions(row) if row else None
    table = Table(caption=Text(caption[:1].upper() + caption[1:]) if caption else None, caption_justify="left")
    table.add_column("System", overflow="fold")
    table.add_column("Kind")
    for _, heading in tables.columns(metrics):
        table.add_column(Text(heading), justify="right")
    for entry in shown:
        figures = [Text(cell.text.replace("\u00a0", " ")) for cell in tables.cells(entry, metrics)]
        table.add_row(Text(entry.label), Text(entry.kind), *figures)
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
    page, style, script = (own.joinpath(f"report_page.{end}").read_text(encoding="utf-8") for end in ("html", "css", "js"))
    results, overrides, configs = clean(list(results)), clean(overrides), clean(configs)
    shown = tables.entries(results, overrides)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(
        metric=tables.metric_name, number=tables.number, percent=tables.percent, times=tables.times,
        count=tables.count, seconds=tables.seconds, spread=tables.spread, fact=_fact, markup=Markup,
    )  # fmt: skip
    figures = [*plots.quality_latency(shown), *plots.latency_split(shown), *plots.speedup_length(shown)]
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
        kinds=tables.KINDS,
        **_table(shown, overrides),
        **_words(shown),
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
    metrics = tables.metric_keys(shown)
    keys = list(dict.fromkeys(key for chosen in overrides or [] for key in chosen))
    rows = [
        {
            "entry": entry,
            "overrides": [(overrides or [{}] * (entry.run + 1))[entry.run].get(key, tables.MISSING) for key in keys],
            "cells": tables.cells(entry, metrics),
        }
        for entry in shown
    ]
    return {"rows": rows, "columns": tables.columns(metrics), "override_keys": keys}


def _words(shown: Sequence[Entry]) -> dict[str, Any]:
    """What the page says of the systems as a whole."""
    scores = {
        (key, score["signature"], score["n"])
        for entry in shown
        for key, score in entry.system.get("quality", {}).items()
    }
    having, sample_rows = tables.samples(shown)
    row = next((entry.row for entry in shown if entry.row), None)
    return {
        "verdict": tables.verdict(shown),
        "conditions": tables.conditions(row) if row else "",
        "metrics": tables.metric_keys(shown),
        "scores": sorted(scores),
        "sample_systems": having,
        "samples": sample_rows,
        "note_keys": list(dict.fromkeys(key for entry in shown for key in entry.system.get("notes") or {})),
        "shown": shown,
    }


def _fact(value: Any) -> str:
    """A plain fact of a run's notes as text."""
    if value is None:
        return tables.MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_fact(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(_fact(item) for item in value)
    return str(value)
