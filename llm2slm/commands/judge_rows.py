"""What `llm2slm judge` shows to the judge: the rows of one or two runs side by side, and what they were asked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm2slm import runs
from llm2slm.config import JudgeConfig
from llm2slm.evaluation.judge.client import whole
from llm2slm.evaluation.judge.verdicts import Row
from llm2slm.types import UserError


def read_rows(config: JudgeConfig) -> list[Row]:
    """The rows of the runs, side by side.

    Raises:
        UserError: a file that cannot be read, or two that answer other questions.
    """
    paths = [predictions(place) for place in config.runs]
    files = [[(number, fields(path, number, row)) for number, row in runs.read_jsonl(path)] for path in paths]
    for path, lines in zip(paths, files, strict=True):
        if not lines:
            raise UserError(f"{path}: holds no rows")
        if len(lines) != len(files[0]):
            raise UserError(f"{paths[0]} holds {len(files[0])} rows, {path} holds {len(lines)}: not the same questions")
    rows = []
    for beside in list(zip(*files, strict=True))[: config.rows]:
        sources = {row["source"] for _, row in beside}
        if len(sources) > 1:
            places = " and ".join(f"{path}, line {number}" for path, (number, _) in zip(paths, beside, strict=True))
            raise UserError(f"{places}: the sources differ; compare runs that answer the same questions")
        reference = next((row["target"] for _, row in beside if row["target"].strip()), "")
        rows.append(Row(beside[0][0], sources.pop(), reference, tuple(row["prediction"] for _, row in beside)))
    return rows


def predictions(place: str) -> Path:
    """The file of a run's answers."""
    path = Path(place)
    path = path / "predictions.jsonl" if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"{path}: no such file; `llm2slm evaluate run=RUN` writes one into its run directory")
    return path


def fields(path: Path, number: int, row: Mapping[str, Any]) -> dict[str, str]:
    """Source, target and prediction of a row; one without a target (as `generate` writes them) has an empty one."""
    found = {"target": "", **{name: row[name] for name in ("source", "target", "prediction") if name in row}}
    for name in ("source", "target", "prediction"):
        if not isinstance(found.get(name), str):
            raise UserError(f"{path}, line {number}: no text in the field {name}; has: {', '.join(row)}")
    return {name: whole(text) for name, text in found.items()}


def asked_with(config: JudgeConfig) -> str:
    """What stands before each source, so that the judge knows what was asked of it: the configuration's `instruction`,
    else the prefix of the first run's task ("" where no run records one, or where rows have different ones)."""
    if config.instruction is not None:
        return config.instruction
    homes = [home for place in config.runs if (home := runs.home(str(predictions(place).parent))) is not None]
    if not homes:
        return ""
    from llm2slm.commands.generate import recorded
    from llm2slm.config import DataConfig, TaskConfig
    from llm2slm.data.sources.sources import task_of

    task = task_of(recorded(homes[0], "task", TaskConfig), recorded(homes[0], "data", DataConfig))
    return "" if task.prefixes else task.prefix
