"""One table for all jobs of a sweep, built from the files in the jobs' folders, so that it works with any launcher."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llm2slm import runs
from llm2slm.atomic import write_text
from llm2slm.evaluation.metrics.scores import lower_is_better
from llm2slm.evaluation.report.corpora import CORPUS, with_corpora
from llm2slm.shown_text import cell, on_one_line
from llm2slm.sweeps.jobs import JobRecord, assignments, has_result, name_of, read_records
from llm2slm.types import UserError

PLAIN = ("status", "system", "total_parameters", "trainable_parameters")
"""Columns that are printed only if their values differ."""
BEST = "best"
"""Column that marks the best job by validation."""


def table(folder: Path) -> list[dict[str, Any]]:
    """A row for each system of each job: job, overridden keys, status, scores, speed, parameters, seconds, error.

    Validation scores are in columns val/<metric> (of a job without a result, the best so far), those of the split that
    was tested in columns <metric>. Test scores of one metric with signatures that do not compare are in separate
    columns, as in the report.
    """
    from llm2slm.evaluation.report.entries import entries

    rows: list[dict[str, Any]] = []
    records = read_records(folder)
    results = results_of(folder, records)
    shown = entries(list(results.values())) if any(result["systems"] for result in results.values()) else []
    chosen, _ = best_job(results)
    for record in records:
        corpus = {CORPUS: results[record.folder][CORPUS]} if CORPUS in results.get(record.folder, {}) else {}
        head = {"job": record.folder, **assignments(record.overrides), **corpus, "status": record.status}
        if chosen is not None:
            head[BEST] = "yes" if record.folder == chosen else ""
        tail = {"seconds": record.seconds, "error": record.error}
        run = list(results).index(record.folder) if record.folder in results else None
        systems = [entry.system for entry in shown if entry.run == run]
        scores = {} if record.folder in results else validation_columns(folder / record.folder)
        rows += [{**head, **system_columns(system), **tail} for system in systems] or [{**head, **scores, **tail}]
    return rows


def validation_columns(folder: Path) -> dict[str, Any]:
    """The validation scores of a training without a result: of the best validation so far by its monitored metric.

    {} without a validation whose monitored value is finite, and for other verbs.
    """
    try:
        callbacks = runs.read_config(folder)["callbacks"]
        monitor, mode = str(callbacks["monitor"]), callbacks.get("mode")
    except (UserError, KeyError, TypeError, AttributeError):
        return {}
    rows = [row for row in runs.curve(folder / runs.METRICS).values() if math.isfinite(row.get(monitor, math.nan))]
    if not rows:
        return {}
    lowest = mode == "min" if mode else lower_is_better(monitor.removeprefix("val/"))
    best = (min if lowest else max)(rows, key=lambda row: row[monitor])
    return {name: round(value, 4) for name, value in best.items() if name.startswith("val/")}


def results_of(folder: Path, records: Sequence[JobRecord]) -> dict[str, dict[str, Any]]:
    """The results of jobs by the names of their folders, with the key `corpus` if they are of several corpora."""
    having = [record.folder for record in records if has_result(folder / record.folder)]
    found = [runs.read_result(folder / name) for name in having]
    marked, _ = with_corpora(found, [config_text(folder / name) for name in having])
    return dict(zip(having, marked, strict=True))


def best_job(results: Mapping[str, Mapping[str, Any]]) -> tuple[str | None, str]:
    """The job with the best validation score, and a line about it; or None, and a line with the reason.

    The line is "" for fewer than two results.
    """
    from llm2slm.evaluation.report.selection import best_by_validation

    chosen, reason = best_by_validation(list(results.values()), [f"job {job}" for job in results])
    if chosen is None:
        return None, reason[:1].lower() + reason[1:].removesuffix(".")
    job, selection = list(results)[chosen], list(results.values())[chosen]["selection"]
    score = f"{selection['metric']} {selection['value']:.4g}, step {selection['step']}"
    return job, f"best by validation: job {job} ({score})"


def system_columns(system: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of one system of a `result.json`."""
    columns: dict[str, Any] = {"system": system["name"]}
    columns |= {f"val/{name}": round(value, 4) for name, value in (system.get("validation") or {}).items()}
    columns |= {name: round(score["value"], 4) for name, score in system["quality"].items()}
    for row in system["speed"][:1]:
        columns["total_ms"] = round(row["total_ms"]["median"], 3)
        columns["ms_per_token"] = round(row["ms_per_token"]["median"], 4)
        if row.get("speedup"):
            columns["speedup"] = round(row["speedup"]["median"], 3)
    return columns | {f"{kind}_parameters": count for kind, count in system["parameters"].items()}


def write_table(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Writes sweep.csv and sweep.md."""
    names = columns_of(rows)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, names, restval="", extrasaction="ignore")
    writer.writeheader()
    writer.writerows({name: cell(value) for name, value in row.items()} for row in rows)
    write_text(folder / "sweep.csv", text.getvalue())
    lines = ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
    for row in rows:
        cells = (on_one_line(str(row.get(name, ""))).replace("|", "\\|").replace("<", "&lt;") for name in names)
        lines.append("| " + " | ".join(cells) + " |")
    write_text(folder / "sweep.md", "\n".join(lines) + "\n")


def columns_of(rows: list[dict[str, Any]]) -> list[str]:
    """Every column with a value in some row, `seconds` and `error` last."""
    last = ("seconds", "error")
    names = list(dict.fromkeys(name for row in rows for name in row if name not in last))
    return names + [name for name in last if any(row.get(name) not in (None, "") for row in rows)]


def show_table(rows: list[dict[str, Any]]) -> None:
    """Prints a narrow version of the table, then one line per error. sweep.csv has the whole table.

    Columns that are equal in all rows are left out, keys are shortened to their last part where that is unique, and
    numbers have four figures.
    """
    from rich.console import Console

    from llm2slm.evaluation.report.factors import shorter
    from llm2slm.evaluation.report.report import fitted

    names = [name for name in columns_of(rows) if name not in ("error", BEST)]
    plain = PLAIN[1:] if any(is_partial(row) for row in rows) else PLAIN
    names = [n for n in names if n not in plain or len(rows) == 1 or len({row.get(n) for row in rows}) > 1]
    short = [name.rpartition(".")[2].removesuffix("_parameters") for name in names]
    head = [last if short.count(last) == 1 else name for name, last in zip(names, short, strict=True)]
    cells = ((row.get(name, "") for name in names) for row in rows)
    lines = [[f"{cell:.4g}" if isinstance(cell, float) else shorter(str(cell)) for cell in line] for line in cells]
    Console().print(fitted([head, *lines], "", turn=False))
    for row in rows:
        if row["error"]:
            print(f"job {row['job']}: {on_one_line(row['error'])}")


def is_partial(row: Mapping[str, Any]) -> bool:
    """Whether the validation scores of a row are of a training that is not done."""
    return row.get("status") != "done" and any(name.startswith("val/") for name in row)


def varied(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """The rows reduced to the keys whose values differ; unchanged if no value differs."""
    keys = [key for key in dict.fromkeys(k for row in rows for k in row) if len({row.get(key) for row in rows}) > 1]
    return [{key: row[key] for key in keys if key in row} for row in rows] if keys else rows


def finish_sweep(folder: Path) -> bool:
    """Writes sweep.csv, sweep.md and (if any job has a result) report.html; prints the table and the best job.

    Returns:
        Whether every job is complete.
    """
    records = read_records(folder)
    if not records:
        return False
    rows = table(folder)
    write_table(folder, rows)
    chosen = [assignments(record.overrides) for record in records]
    fixed = {key for row in chosen for key in row} - {key for row in varied(chosen) for key in row}
    show_table([{name: value for name, value in row.items() if name not in fixed} for row in rows])
    results = results_of(folder, records)
    if results:
        show_seeds(records, results)
    _, line = best_job(results)
    if line:
        print(line)
    print(folder / "sweep.csv")
    if results:
        from llm2slm.evaluation.report.report import write_report

        overrides, configs = shown_overrides(records, results), [config_text(folder / name) for name in results]
        title = f"Sweep {name_of(folder)}"
        print(write_report(list(results.values()), folder, title, overrides, configs))
    return all(record.complete for record in records)


def show_seeds(records: Sequence[JobRecord], results: Mapping[str, Mapping[str, Any]]) -> None:
    """Prints mean and spread of the jobs that differ in the seed alone, where there are some."""
    from rich.console import Console

    from llm2slm.evaluation.report.report import seed_table

    found = seed_table(list(results.values()), overrides=shown_overrides(records, results))
    if found is not None:
        Console().print(found)


def shown_overrides(records: Sequence[JobRecord], results: Mapping[str, Mapping[str, Any]]) -> list[dict[str, str]]:
    """The varied overrides of each job with a result, and its corpus if the results are of several."""
    having = [record for record in records if record.folder in results]
    found = varied([assignments(record.overrides) for record in having])
    corpora = [results[record.folder].get(CORPUS) for record in having]
    return [row | ({CORPUS: str(name)} if name else {}) for row, name in zip(found, corpora, strict=True)]


def config_text(folder: Path) -> str:
    """The text of a run's config.yaml, "" where there is none."""
    path = folder / "config.yaml"
    return path.read_text(encoding="utf-8") if path.is_file() else ""
