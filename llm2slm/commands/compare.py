"""`llm2slm compare runs=[RUN,...]`: significance of the differences between systems over the same rows."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from llm2slm import runs
from llm2slm.commands.deferred_warnings import show_held
from llm2slm.commands.output_folder import check_folder
from llm2slm.config import CompareConfig
from llm2slm.config.ranges import check_ranges
from llm2slm.data.languages import known
from llm2slm.evaluation.compare.same_rows import check_aligned
from llm2slm.evaluation.compare.systems import (
    FIELDS,
    Answers,
    agreed_languages,
    find,
    label_systems,
    read_run,
    set_speeds,
)
from llm2slm.evaluation.metrics.language_warnings import advice
from llm2slm.evaluation.metrics.scores import METRICS, of_texts, score
from llm2slm.evaluation.metrics.scores import check as check_known
from llm2slm.evaluation.metrics.tokenization import by_row
from llm2slm.tracking.session import check as check_loggers
from llm2slm.tracking.session import track
from llm2slm.tracking.summary import sample_table
from llm2slm.tracking.tracker import Table
from llm2slm.types import UserError


def run(config: CompareConfig, folder: Path) -> None:  # noqa: ARG001 - every verb is called alike
    """Compares all runs; writes compare.json, .csv and .html, compare_rows.csv and plots/ into `config.out`.

    Raises:
        UserError: fewer than two systems, different rows, or a malformed file.
    """
    started = time.perf_counter()
    check(config)
    systems, baseline = read(config)
    from rich.console import Console

    from llm2slm.evaluation.compare.page import csv_text, flat_rows, page_and_plots, terminal_table
    from llm2slm.evaluation.compare.rows import rows_csv, terminal_rows
    from llm2slm.evaluation.compare.statistics import Settings, compare
    from llm2slm.evaluation.report.drawing import write_plots
    from llm2slm.evaluation.report.page import write_whole
    from llm2slm.progress import progress_bar

    metrics, left_out = metrics_of(config, systems)
    languages, targets = agreed_languages(systems, config.language), [target for _, target, _ in systems[0].rows]
    for line in advice(metrics, languages, targets, key="language"):
        print(f"llm2slm: warning: {line}", file=sys.stderr)
    codes = by_row(languages, targets)
    timing = set_speeds(systems, systems[baseline], config.benchmark)
    show_held()
    with track("compare", config, None) as tracking:
        with progress_bar(shown=True, transient=True) as bar:

            def open_bar(name: str, total: int) -> Callable[[int], object]:
                task = bar.add_task(name, total=total, speed="")
                return lambda done: bar.advance(task, done)

            settings = Settings(
                metrics, config.resamples, config.seed, config.rows, codes, named=config.baseline is not None
            )
            comparison = compare(systems, baseline, settings, timing, open_bar)
        comparison.notes += left_out
        comparison.config_hash = runs.config_hash(config)
        comparison.wall_seconds = time.perf_counter() - started
        found, out = runs.plain(comparison), Path(config.out)
        write_whole(out / "compare.json", json.dumps(found, indent=1, ensure_ascii=False) + "\n")
        write_whole(out / "compare.csv", csv_text(found))
        write_whole(out / "compare_rows.csv", rows_csv(found))
        text, plots = page_and_plots(found)
        write_plots(out / "plots", plots)
        page = write_whole(out / "compare.html", text)
        samples = {system.label: as_samples(system.rows[: config.logger.samples]) for system in systems}
        tracking.table("samples", sample_table(samples, config.logger.samples))
        rows = flat_rows(found)
        tracking.table("systems", Table(list(rows[0]), [list(row.values()) for row in rows]))
        tracking.outputs(out)
    console = Console()
    console.print(terminal_table(found))
    console.print(terminal_rows(found))
    if found["row_differences"]:
        print(f"More rows with whole texts, and those on which a system is better: {out / 'compare_rows.csv'}")
    print(page)


def as_samples(rows: Sequence[tuple[str, str, str]]) -> list[dict[str, str]]:
    """Source, target and prediction as rows of a table of samples."""
    return [dict(zip(FIELDS, row, strict=True)) for row in rows]


def check(config: CompareConfig) -> None:
    """Checks the configuration before anything is read."""
    if config.language is not None:
        known(config.language, "language")
    if not config.runs:
        raise UserError(
            "compare needs runs: llm2slm compare RUN RUN ..., run directories with predictions, or one of a demo"
        )
    check_ranges(config)
    check_loggers(config.logger)
    check_folder("out", Path(config.out))


def read(config: CompareConfig) -> tuple[list[Answers], int]:
    """All systems, labelled and over the same rows, and the index of the baseline."""
    systems = [system for path in config.runs for system in read_run(path)]
    label_systems(systems)
    baseline = 0
    if config.baseline is not None:
        found = find(systems, config.baseline)
        if found is None and not Path(config.baseline).exists():
            labels = ", ".join(system.label for system in systems)
            raise UserError(f"baseline={config.baseline}: no such run; compared systems: {labels}")
        if found is None:
            systems = [*read_run(config.baseline), *systems]
            label_systems(systems)
        baseline = found or 0
    if len(systems) < 2:
        raise UserError(f"runs=[{','.join(config.runs)}]: holds one system; compare needs two or more")
    check_aligned(systems)
    score([], systems[0].predictions, [target for _, target, _ in systems[0].rows])  # refuses rows without references
    return systems, baseline


def metrics_of(config: CompareConfig, systems: list[Answers]) -> tuple[list[str], list[str]]:
    """The metrics to compare (given, or those of the results), and notes on omitted metrics."""
    if config.metrics is not None:
        check_known(config.metrics)
        for name in config.metrics:
            if name not in of_texts(config.metrics):
                raise UserError(f"metrics: {name} cannot be resampled; use {', '.join(of_texts(METRICS))}")
        if not config.metrics:
            raise UserError("metrics=[]: name one or more, or leave it out for those of the runs' results")
        return list(dict.fromkeys(config.metrics)), []
    stated = dict.fromkeys(name for system in systems for name in system.system.get("quality") or {})
    known = of_texts(stated)
    if not known:
        raise UserError(f"the results name no metric that can be resampled; give metrics=[{next(iter(METRICS))}]")
    return known, [f"{name} is left out: it cannot be resampled." for name in stated if name not in known]
