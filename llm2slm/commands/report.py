"""`llm2slm report runs=[DIR,...]`: one page, and one table in the terminal, of the results of several runs."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm2slm import runs
from llm2slm.commands.output_folder import check_folder
from llm2slm.config import ReportConfig
from llm2slm.evaluation.report.corpora import CORPUS, refuse_mixed, with_corpora
from llm2slm.sweeps.jobs import assignments, commands_of, has_result, is_sweep, name_of, read_records, to_complete
from llm2slm.sweeps.table import config_text, varied
from llm2slm.tracking.session import check as check_loggers
from llm2slm.tracking.session import track
from llm2slm.tracking.summary import sample_table, systems_table
from llm2slm.types import UserError


@dataclass(frozen=True)
class Named:
    """A result: its file or folder, what distinguishes it in the table, and its name in messages."""

    path: Path
    columns: dict[str, str]
    name: str

    @property
    def home(self) -> Path:
        """Its folder."""
        return self.path if self.path.is_dir() else self.path.parent


def run(config: ReportConfig, folder: Path) -> None:  # noqa: ARG001 - every verb is called alike
    """Writes `report.html` and its plots (`plots/`, as SVG and PDF) into `config.out`, and prints the tables.

    Raises:
        UserError: no runs given, a run without a result, or runs of several corpora without `mixed=true`.
    """
    from rich.console import Console

    from llm2slm.evaluation.report.report import bucket_table, seed_table, terminal_table, write_report

    if not config.runs:
        raise UserError("report needs runs: llm2slm report RUN RUN ..., run directories or result.json files")
    check_folder("out", Path(config.out))
    check_loggers(config.logger)
    given = list(results_named(config.runs))
    same = [each.home.resolve() for each in given]
    if twice := next((each.name for each, home in zip(given, same, strict=True) if same.count(home) > 1), None):
        raise UserError(f"runs: {twice} is given twice; give each run once")
    configs = [config_text(each.home) for each in given]
    results, corpora = with_corpora([runs.read_result(each.path) for each in given], configs)
    if not config.mixed:
        refuse_mixed(corpora, [each.name for each in given])
    names = columns(given, results) if len(given) > 1 else None
    with track("report", config, None) as tracking:
        page = write_report(results, Path(config.out), title(config), names, configs, plots=True)
        found = all_systems(results, [each.name for each in given])
        samples = {system["name"]: system["samples"] for system in found["systems"] if system.get("samples")}
        tracking.table("systems", systems_table(found))
        tracking.table("samples", sample_table(samples, config.logger.samples))
        tracking.outputs(Path(config.out))
    console = Console()
    console.print(terminal_table(results, overrides=names))
    if (seeds := seed_table(results, overrides=names)) is not None:
        console.print(seeds)
    if config.buckets:
        console.print(
            bucket_table(results, overrides=names) or "No quality by length: the results have too few rows for it."
        )
    print(page)


def results_named(given: list[str]) -> Iterator[Named]:
    """The results of runs and sweeps; a line is printed about the jobs of a sweep without a result.

    Raises:
        UserError: a sweep without any result.
    """
    sweeps = [name for name in given if is_sweep(Path(name))]
    for name in given:
        folder = Path(name)
        if not is_sweep(folder):
            yield Named(folder, {"run": name}, name)
            continue
        records = read_records(folder)
        having = [record for record in records if has_result(folder / record.folder)]
        if not having:
            raise UserError(f"{name}: no job of this sweep has a result yet")
        if missing := [record for record in records if record not in having]:
            commands = to_complete(commands_of(folder, records), records)
            by = f"; to complete the sweep: {' && '.join(commands)}" if commands else ""
            listed = ", ".join(f"{record.folder} ({record.status})" for record in missing[:8])
            more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
            print(f"llm2slm: {name}: no result of job {listed}{more}{by}", file=sys.stderr)
        of_sweep = {"sweep": name_of(folder.absolute())} if len(sweeps) > 1 or len(given) > 1 else {}
        for record in having:
            path = folder / record.folder
            yield Named(path, of_sweep | assignments(record.overrides), str(path))


def columns(given: list[Named], results: list[dict[str, Any]]) -> list[dict[str, str]]:
    """What distinguishes each run: the keys with several values, and the corpus if there are several."""
    found = varied([each.columns for each in given])
    return [
        row | ({CORPUS: str(result[CORPUS])} if CORPUS in result else {})
        for row, result in zip(found, results, strict=True)
    ]


def title(config: ReportConfig) -> str:
    """The title of the page: by default the name of a single sweep."""
    one = Path(config.runs[0])
    if config.title == ReportConfig.title and len(config.runs) == 1 and is_sweep(one):
        return f"Sweep {name_of(one.absolute())}"
    return config.title


def all_systems(results: Sequence[dict[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """The systems of several results in one, named after their runs, for the loggers."""
    return {
        "systems": [
            system | {"name": f"{name}: {system['name']}"}
            for name, result in zip(names, results, strict=True)
            for system in result["systems"]
        ]
    }
