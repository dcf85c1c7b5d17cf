"""Lightning's loggers of a training: `metrics.csv` row by row, and an adapter to the loggers of the command."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from llm2slm.atomic import replacing, writing
from llm2slm.ranks import first_process
from llm2slm.runs import METRICS
from llm2slm.tracking.session import Tracking
from llm2slm.types import UserError

Loggers = list[Logger]


class MetricsFile(Logger):
    """Writes `metrics.csv` into the run directory: one row per step, one column per metric, empty where not logged.

    Every row is on disk as soon as it is logged. A resumed run continues the file and replaces rows from the first step
    that it logs. (Lightning's CSVLogger writes one row per call, and starts a new file.)
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.path = folder / METRICS
        self._columns = ["step"]
        self._rows: dict[int, dict[str, Any]] | None = None  # None: nothing logged yet, so an older file is untouched
        self._offset = 0  # where the last row starts: it is rewritten when its step logs another metric

    @property
    def name(self) -> str:
        """The logger's name in Lightning."""
        return "csv"

    @property
    def version(self) -> None:
        """None: the folder is the version."""
        return

    @property
    def save_dir(self) -> str:
        """The run directory."""
        return str(self.path.parent)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing: `config.yaml` holds them."""

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Adds metrics (numbers or one-element tensors) to the row of `step`; None: the last row's."""
        if not first_process():
            return
        if self._rows is None:
            self._rows = self._earlier_rows(before=step)
        last = max(self._rows, default=0)
        step = last if step is None else step
        row = self._rows.setdefault(step, {"step": step})
        row |= {key: float(value) if hasattr(value, "item") else value for key, value in metrics.items()}
        new_columns = [key for key in row if key not in self._columns]
        self._columns += new_columns
        if new_columns or step < last or not self._offset:
            self._write_all()
        else:
            self._write_last(row, fresh=step > last)

    def keep(self, step: int) -> None:
        """Keeps the rows of an interrupted run up to and including `step`; call it before logging."""
        if first_process() and self._rows is None:
            self._rows = self._earlier_rows(before=step + 1)

    def _earlier_rows(self, before: int | None) -> dict[int, dict[str, Any]]:
        """Rows of an interrupted run's file before a step."""
        if not self.path.is_file():
            return {}
        try:
            with self.path.open(newline="", encoding="utf-8") as file:
                reader = csv.DictReader(line for line in file if line.endswith("\n"))
                rows = {int(row["step"]): {k: v for k, v in row.items() if k and v} for row in reader}
                self._columns = list(reader.fieldnames or self._columns)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{self.path}: not a metrics file of this project ({error}); move it out of the way"
            ) from None
        return {step: row for step, row in rows.items() if before is None or step < before}

    def _write_all(self) -> None:
        """Rewrites the file atomically with rows in order, and records the offset of the last row."""
        assert self._rows is not None
        with replacing(self.path) as binary:
            file = io.TextIOWrapper(binary, encoding="utf-8", newline="", write_through=True)
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            *earlier, last = sorted(self._rows)
            writer.writerows(self._rows[step] for step in earlier)
            self._offset = file.tell()
            writer.writerow(self._rows[last])
            file.detach()  # `replacing` closes the file

    def _write_last(self, row: dict[str, Any], *, fresh: bool) -> None:
        """Appends the row of a new step, or rewrites the row of the current step."""
        with writing(self.path), self.path.open("r+", newline="", encoding="utf-8") as file:
            if fresh:
                self._offset = file.seek(0, os.SEEK_END)
            else:
                file.seek(self._offset)
                file.truncate()
            csv.DictWriter(file, self._columns).writerow(row)


class TrackedMetrics(Logger):
    """Passes the values that Lightning logs to the loggers of the command."""

    def __init__(self, tracking: Tracking) -> None:
        super().__init__()
        self._tracking = tracking

    @property
    def name(self) -> str:
        """The logger's name in Lightning."""
        return "tracking"

    @property
    def version(self) -> None:
        """None: the loggers have their ids."""
        return

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing: the configuration was logged at the start."""

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Logs numbers or one-element tensors at `step`."""
        values = {key: float(value) for key, value in metrics.items() if key != "epoch"}
        if values and first_process():
            self._tracking.metrics(values, step or 0)


def build_loggers(folder: Path, tracking: Tracking | None = None) -> Loggers:
    """The loggers of a training: `metrics.csv`, and those of the command, if it has any.

    Args:
        folder: the run directory.
    """
    loggers: Loggers = [MetricsFile(folder)]
    if tracking:
        loggers.append(TrackedMetrics(tracking))
    return loggers
