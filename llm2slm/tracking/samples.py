"""The table of samples of a training: prompt, reference and predictions, with new rows at each validation.

`samples.jsonl` in the run directory has its rows, so that a resumed run continues the table.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llm2slm import json_lines
from llm2slm.tracking.session import Tracking
from llm2slm.tracking.tracker import Table
from llm2slm.types import Example, UserError

FILE = "samples.jsonl"


class SampleLog:
    """Adds the first predictions of each validation to the table `samples`.

    Args:
        own: the column of the predictions of this run: the kind of its system.
        others: predictions of other systems by system and source text, for further columns.
    """

    def __init__(self, tracking: Tracking, folder: Path, own: str, others: Mapping[str, Mapping[str, str]]) -> None:
        self.tracking, self._path, self._own, self._others = tracking, folder / FILE, own, dict(others)
        self._rows: list[dict[str, Any]] = []
        if tracking and self._path.is_file():
            self._rows = [row for _, row in json_lines.read_jsonl(self._path)]

    def add(self, steps: int, split: str, examples: Sequence[Example], predictions: Sequence[str]) -> None:
        """Adds rows after an optimizer step; earlier rows of this or a later step (of an interrupted run) are removed.

        Args:
            steps: number of optimizer steps so far.
            split: test rows follow those of the last validation.
        """
        if not self.tracking:
            return
        count = self.tracking.cfg.samples
        kept = [row for row in self._rows if (row["step"], row["split"] == "test") < (steps, split == "test")]
        self._rows = kept + [
            {"step": steps, "split": split, "prompt": example.source, "reference": example.target}
            | {name: found.get(example.source) for name, found in self._others.items()}
            | {self._own: prediction}
            for example, prediction in zip(examples[:count], predictions[:count], strict=True)
        ]
        json_lines.write_jsonl(self._path, self._rows)
        columns = ["step", "split", "prompt", "reference", *self._others, self._own]
        rows = [[row.get(column) for column in columns] for row in self._rows]
        self.tracking.table("samples", Table(columns, rows), step=max(0, steps - 1))


def predictions_of(named: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Predictions of other systems by source text, from `callbacks.predictions`.

    Raises:
        UserError: a file is missing or has other rows.
    """
    return {system: _read(f"callbacks.predictions.{system}", Path(path)) for system, path in named.items()}


def _read(key: str, path: Path) -> dict[str, str]:
    file = path / "predictions.jsonl" if path.is_dir() else path
    if not file.is_file():
        raise UserError(
            f"{key}={path}: no predictions.jsonl; give a run directory of `llm2slm evaluate run=MODEL split=validation`"
        )
    rows = [row for _, row in json_lines.read_jsonl(file)]
    if not all(isinstance(row.get("source"), str) and isinstance(row.get("prediction"), str) for row in rows):
        raise UserError(f"{key}={path}: no source and prediction in {json.dumps(rows[0])[:60]}; give predictions.jsonl")
    return {row["source"]: row["prediction"] for row in rows}
