"""The rows that `llm2slm judge` shows to the judge: sources, references and predictions of one or two runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm2slm import runs
from llm2slm.config import JudgeConfig
from llm2slm.evaluation.judge.client import without_surrogates
from llm2slm.evaluation.judge.verdicts import Row
from llm2slm.types import UserError


def read_rows(config: JudgeConfig) -> list[Row]:
    """The rows of the runs, matched by their order.

    Raises:
        UserError: a file cannot be read, or the runs have different sources.
    """
    paths = [predictions_file(run) for run in config.runs]
    files = [[(number, texts(path, number, row)) for number, row in runs.read_jsonl(path)] for path in paths]
    for path, lines in zip(paths, files, strict=True):
        if not lines:
            raise UserError(f"{path}: holds no rows")
        if len(lines) != len(files[0]):
            raise UserError(f"{paths[0]} holds {len(files[0])} rows, {path} holds {len(lines)}: not the same questions")
    rows = []
    for matched in list(zip(*files, strict=True))[: config.rows]:
        sources = {row["source"] for _, row in matched}
        if len(sources) > 1:
            where = " and ".join(f"{path}, line {number}" for path, (number, _) in zip(paths, matched, strict=True))
            raise UserError(f"{where}: the sources differ; compare runs that answer the same questions")
        reference = next((row["target"] for _, row in matched if row["target"].strip()), "")
        rows.append(Row(matched[0][0], sources.pop(), reference, tuple(row["prediction"] for _, row in matched)))
    return rows


def predictions_file(run: str) -> Path:
    """The predictions of a run directory, or a file of predictions itself."""
    path = Path(run)
    path = path / "predictions.jsonl" if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"{path}: no such file; `llm2slm evaluate run=RUN` writes one into its run directory")
    return path


def texts(path: Path, number: int, row: Mapping[str, Any]) -> dict[str, str]:
    """Source, target and prediction of a row. The target may be missing, as in files of `generate`: then it is ""."""
    found = {"target": "", **{name: row[name] for name in ("source", "target", "prediction") if name in row}}
    for name in ("source", "target", "prediction"):
        if not isinstance(found.get(name), str):
            raise UserError(f"{path}, line {number}: no text in the field {name}; has: {', '.join(row)}")
    return {name: without_surrogates(text) for name, text in found.items()}


def instruction_of(config: JudgeConfig) -> str:
    """The text before each source, which shows the judge the task: the configuration's `instruction`, else the prefix
    of the first run's task ("" if no run records a task, or if its rows have different prefixes)."""
    if config.instruction is not None:
        return config.instruction
    homes = [home for run in config.runs if (home := runs.home(str(predictions_file(run).parent))) is not None]
    if not homes:
        return ""
    from llm2slm.commands.generate import recorded
    from llm2slm.config import DataConfig, TaskConfig
    from llm2slm.data.sources.sources import task_of

    task = task_of(recorded(homes[0], "task", TaskConfig), recorded(homes[0], "data", DataConfig))
    return "" if task.prefixes else task.prefix
