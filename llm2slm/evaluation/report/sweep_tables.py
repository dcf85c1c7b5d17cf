"""The tables of a sweep as text: best runs by validation, groups of seeds, effect of each factor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llm2slm.evaluation.report.entries import metric_name
from llm2slm.evaluation.report.factors import FactorRun, Level, Summary, Sweep, shorter
from llm2slm.evaluation.report.tables import MISSING, Cell, number, score

BEST = 10
"""Rows of the table of best runs."""


@dataclass(frozen=True)
class LevelRow:
    """A row of the table of factors: `first` of its factor, whose levels it counts."""

    factor: str
    levels: int
    balanced: bool
    first: bool
    name: str
    cells: Sequence[Cell]


def sweep_tables(sweep: Sweep) -> dict[str, Any]:
    """Headings and rows of the three tables of the page."""
    return {
        "metric": validation_name(sweep),
        "keys": list(sweep.runs[0].factors) if sweep.runs else [],
        "metrics": [metric_name(key) for key in sweep.metrics],
        "best": [(run, _values(run), _run_cells(sweep, run)) for run in sweep.ranked[:BEST]],
        "ranked": len(sweep.ranked),
        "groups": [(level.name, _level_cells(sweep, level)) for level in sweep.groups],
        "levels": [
            LevelRow(factor.key, len(factor.levels), factor.balanced, n == 0, level.name, _level_cells(sweep, level))
            for factor in sweep.factors
            for n, level in enumerate(factor.levels)
        ],
    }


def validation_name(sweep: Sweep) -> str:
    """The heading of validation scores; "" where the runs have none in common."""
    return f"Validation {metric_name(sweep.metric.removeprefix('val/'))}" if sweep.metric else ""


def _values(run: FactorRun) -> list[str]:
    return [shorter(value) or MISSING for value in run.factors.values()]


def _run_cells(sweep: Sweep, run: FactorRun) -> list[Cell]:
    tested = [Cell(key, score(run.test.get(key)), run.test.get(key)) for key in sweep.metrics]
    time = Cell("latency", number(run.latency_ms), run.latency_ms)
    return [Cell("validation", score(run.validation), run.validation), *tested, time]


def _level_cells(sweep: Sweep, level: Level) -> list[Cell]:
    tested = [_summary_cell(key, level.test.get(key)) for key in sweep.metrics]
    runs = Cell("runs", str(len(level.runs)), len(level.runs))
    time = None if level.latency_ms is None else level.latency_ms.mean
    latency = Cell("latency", number(time), time)
    best = Cell("best", score(level.best), level.best)
    return [runs, _summary_cell("validation", level.validation), best, *tested, latency]


def _summary_cell(key: str, found: Summary | None) -> Cell:
    if found is None:
        return Cell(key, MISSING)
    return Cell(key, score(found.mean), found.mean, "" if found.deviation is None else f"± {score(found.deviation)}")


def seed_lines(sweep: Sweep) -> list[list[str]]:
    """The table of seeds for the terminal; its first line is the head."""
    validation = [validation_name(sweep)] if sweep.metric else []
    lines = [["Runs", "Seeds", *validation, *(metric_name(key) for key in sweep.metrics)]]
    for level in sweep.groups:
        found = ([level.validation] if validation else []) + [level.test.get(key) for key in sweep.metrics]
        lines.append([level.name, str(len(level.runs)), *map(_summary_text, found)])
    return lines


def _summary_text(found: Summary | None) -> str:
    if found is None:
        return MISSING
    return score(found.mean) + ("" if found.deviation is None else f" ± {score(found.deviation)}")
