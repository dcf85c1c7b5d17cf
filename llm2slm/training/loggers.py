"""Loggers of a run: always `metrics.csv` in the run directory; with logger=wandb a Weights & Biases run as well.

Use, the same for one run and for each job of a sweep:

    with finish_loggers():
        loggers = build_loggers(config.logger, folder, config)
        Trainer(logger=loggers).fit(...)
        log_samples(loggers, rows)
        log_quality(loggers, {"bleu": 31.4})
"""

from __future__ import annotations

import csv
import io
import os
import secrets
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.loggers import Logger, WandbLogger

from llm2slm.atomic import replacing, write_text, writing
from llm2slm.config import LoggerConfig, RunConfig
from llm2slm.config.choices import CHOICES, check_choice
from llm2slm.runs import plain
from llm2slm.training.ranks import first_process
from llm2slm.types import UserError

Loggers = list[Logger]
SAMPLE_COLUMNS = ("source", "target", "prediction")


class MetricsFile(Logger):
    """Writes `metrics.csv` into the run directory: one row per step, one column per metric, empty where not logged.

    Every row is on disk as soon as it is logged. A resumed run continues the file and replaces rows from the first step
    that it logs. (Lightning's CSVLogger writes one row per call, and starts a new file.)
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.path = folder / "metrics.csv"
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


def build_loggers(cfg: LoggerConfig, folder: Path, config: RunConfig) -> Loggers:
    """The loggers of a run. Call it inside `finish_loggers`, once per run.

    Args:
        cfg: name and settings of the loggers.
        folder: the run directory.
        config: the whole resolved configuration, which the W&B run records.

    Raises:
        UserError: unknown name or mode, or W&B refuses to start the run (no account, no network).
    """
    check_choice("logger.name", cfg.name, CHOICES[LoggerConfig]["name"])
    loggers: Loggers = [MetricsFile(folder)]
    if cfg.name == "wandb" and first_process():
        loggers.append(_wandb_logger(cfg, folder, config))
    return loggers


def _wandb_logger(cfg: LoggerConfig, folder: Path, config: RunConfig) -> WandbLogger:
    """A new W&B run, opened immediately so that a refusal precedes training."""
    mode: Literal["offline", "online"] = "online" if cfg.mode == "online" else "offline"
    check_choice("logger.mode", cfg.mode, CHOICES[LoggerConfig]["mode"])
    import wandb

    if wandb.run is not None:  # WandbLogger would write into it, with a warning only
        raise UserError(f"W&B run {wandb.run.id} is still open in this process; call wandb.finish() first")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        # Opened here, not by WandbLogger, whose offline=True switches the whole process to offline.
        run = wandb.init(
            name=f"{config.model.kind}-{folder.name}",
            project=cfg.project,
            entity=cfg.entity,
            group=cfg.group,
            tags=list(cfg.tags),
            dir=folder,
            id=_run_id(folder, resumed=config.run is not None),
            resume="allow",
            config=plain(config),
            mode=mode,
            settings=wandb.Settings(silent=mode == "offline", console="off", disable_job_creation=True),
        )
    except wandb.Error as error:
        reason = " ".join(str(error).split())
        raise UserError(f"W&B did not start ({reason}); run `wandb login`, or set logger.mode=offline") from None
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return WandbLogger(experiment=run, project=cfg.project, save_dir=folder)


def _run_id(folder: Path, *, resumed: bool) -> str:
    """The W&B id: a new one, or the previous one when resuming, so that both parts form one run."""
    path = folder / "wandb" / "run-id"
    if resumed and path.is_file():
        return path.read_text(encoding="utf-8").strip()
    write_text(path, identity := secrets.token_hex(4))
    return identity


@contextmanager
def finish_loggers() -> Iterator[None]:
    """Closes the W&B run that was opened in the block, also on an error, and restores the WANDB_* environment.

    An open run would receive the curves of the next sweep job. On an error the run is marked as failed.
    """
    before = _wandb_environment()
    failed = True
    try:
        yield
        failed = False
    finally:
        wandb = sys.modules.get("wandb")
        if wandb is not None and wandb.run is not None:
            parts = sorted(Path(wandb.run.settings.wandb_dir).glob(f"offline-run-*-{wandb.run.id}"))
            wandb.finish(exit_code=int(failed))
            if len(parts) > 1:
                paths = shlex.join(map(str, parts))
                print(f"llm2slm: to upload all {len(parts)} parts of this W&B run: wandb sync {paths}", file=sys.stderr)
        for key in _wandb_environment():
            del os.environ[key]
        os.environ.update(before)


def _wandb_environment() -> dict[str, str]:
    """W&B's variables without WANDB_SERVICE, the address of its service process, which later runs reuse."""
    return {k: v for k, v in os.environ.items() if k.startswith("WANDB_") and k != "WANDB_SERVICE"}


def log_samples(loggers: Sequence[Logger], rows: Sequence[Mapping[str, str]]) -> None:
    """Logs rows of source, target and prediction as a W&B table `samples` (on disk: predictions.jsonl)."""
    for logger in loggers:
        if isinstance(logger, WandbLogger) and first_process():
            logger.log_table("samples", list(SAMPLE_COLUMNS), [[row[key] for key in SAMPLE_COLUMNS] for row in rows])


def log_quality(loggers: Sequence[Logger], quality: Mapping[str, float]) -> None:
    """Adds final scores to the summary of the W&B run as `quality/<metric>` (on disk: result.json)."""
    for logger in loggers:
        if isinstance(logger, WandbLogger) and first_process():
            logger.experiment.summary.update({f"quality/{name}": float(value) for name, value in quality.items()})
