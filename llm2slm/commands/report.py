"""`llm2slm report runs=[DIR,...]`: one page, and one table in the terminal, of the results of several runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llm2slm import runs
from llm2slm.commands.output_folder import check_folder
from llm2slm.config import ReportConfig
from llm2slm.tracking.session import check as check_loggers
from llm2slm.tracking.session import track
from llm2slm.tracking.summary import sample_table, systems_table
from llm2slm.types import UserError


def run(config: ReportConfig, folder: Path) -> None:  # noqa: ARG001 - every verb is called alike
    """Writes `report.html` and its plots (`plots/`, as SVG and PDF) into `config.out`, and prints the table.

    Raises:
        UserError: no runs given, or a run without a result.
    """
    from rich.console import Console

    from llm2slm.evaluation.report.report import bucket_table, terminal_table, write_report

    if not config.runs:
        raise UserError("report needs runs: llm2slm report RUN RUN ..., run directories or result.json files")
    check_folder("out", Path(config.out))
    check_loggers(config.logger)
    paths = [Path(name) for name in config.runs]
    results = [runs.read_result(path) for path in paths]
    homes = [path if path.is_dir() else path.parent for path in paths]
    same = [home.resolve() for home in homes]
    if twice := next((name for name, home in zip(config.runs, same, strict=True) if same.count(home) > 1), None):
        raise UserError(f"runs: {twice} is given twice; give each run once")
    configs = [path.read_text("utf-8") if (path := home / "config.yaml").is_file() else "" for home in homes]
    names = [{"run": name} for name in config.runs] if len(paths) > 1 else None
    with track("report", config, None) as tracking:
        page = write_report(results, Path(config.out), config.title, names, configs, plots=True)
        found = all_systems(results, config.runs)
        samples = {system["name"]: system["samples"] for system in found["systems"] if system["samples"]}
        tracking.table("systems", systems_table(found))
        tracking.table("samples", sample_table(samples, config.logger.samples))
        tracking.outputs(Path(config.out))
    Console().print(terminal_table(results, overrides=names))
    if config.buckets:
        Console().print(
            bucket_table(results, overrides=names) or "No quality by length: the results have too few rows for it."
        )
    print(page)


def all_systems(results: Sequence[dict[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """The systems of several results in one, named after their runs, for the loggers."""
    return {
        "systems": [
            system | {"name": f"{name}: {system['name']}"}
            for name, result in zip(names, results, strict=True)
            for system in result["systems"]
        ]
    }
