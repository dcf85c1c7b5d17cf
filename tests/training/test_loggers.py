"""`metrics.csv` row by row, and the adapter that passes Lightning's values to the loggers of the command."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader

from llm2slm.config import LoggerConfig
from llm2slm.tracking.session import Tracking
from llm2slm.training.loggers import MetricsFile, TrackedMetrics, build_loggers
from llm2slm.types import UserError


class Slope(LightningModule):
    """One weight; the loss is its distance from zero, so SGD changes it by exactly the learning rate at each step."""

    def __init__(self, start: float, lr: float) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(start))
        self.lr = lr

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        self.log("train/loss", self.weight)
        self.log("lr/slm", self.trainer.optimizers[0].param_groups[0]["lr"])
        return self.weight * 1.0

    def validation_step(self, batch: torch.Tensor, index: int) -> None:
        self.log("val/loss", self.weight)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr)
        return [optimizer], [
            {"scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step), "interval": "step"}
        ]


def fit(loggers: Any, start: float, lr: float, steps: int = 4) -> None:
    loader = DataLoader(torch.zeros(steps, 1), batch_size=1)
    trainer = Trainer(
        logger=loggers,
        max_steps=steps,
        val_check_interval=2,
        log_every_n_steps=1,
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(Slope(start, lr), loader, DataLoader(torch.zeros(1, 1)))


class Recorded:
    """A logger that records its values."""

    name = "recorded"

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []

    def metrics(self, values: dict[str, float], step: int) -> None:
        self.rows.append((step, dict(values)))


def test_the_adapter_passes_the_values_of_the_curves(tmp_path: Path) -> None:
    """The same numbers at the same steps as in metrics.csv."""
    found = Recorded()
    loggers = build_loggers(tmp_path, Tracking([found], LoggerConfig()))
    assert [type(logger) for logger in loggers] == [MetricsFile, TrackedMetrics]
    fit(loggers, 8.0, 0.5)
    passed = [(step, name, value) for step, row in found.rows for name, value in row.items()]
    written = [
        (int(row["step"]), name, float(value)) for row in read_csv(tmp_path) for name, value in row.items() if value
    ]
    assert sorted(passed) == sorted(row for row in written if row[1] not in ("step", "epoch"))
    assert [value for _, name, value in passed if name == "train/loss"] == [8.0, 7.5, 7.25, 7.125]


def test_without_loggers_there_is_only_the_file(tmp_path: Path) -> None:
    assert [type(logger) for logger in build_loggers(tmp_path, Tracking([], LoggerConfig()))] == [MetricsFile]
    assert [type(logger) for logger in build_loggers(tmp_path)] == [MetricsFile]


def read_csv(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_metrics_file_has_one_row_per_step_and_is_flushed(tmp_path: Path) -> None:
    log = MetricsFile(tmp_path)
    log.log_metrics({"train/loss": torch.tensor(2.5), "epoch": 0}, step=10)
    assert read_csv(tmp_path) == [{"step": "10", "train/loss": "2.5", "epoch": "0"}]
    log.log_metrics({"train/loss": 2.0}, step=20)
    log.log_metrics({"val/loss": 1.5}, step=20)  # a new column, in an existing row
    log.log_metrics({"val/bleu": 7.0})  # no step: the last row
    log.log_metrics({"train/loss": 1.0}, step=30)
    log.log_metrics({"train/loss": 0.5}, step=30)  # a known column: only the last row is rewritten
    log.log_metrics({"val/loss": 9.0}, step=20)  # a late value of an earlier step
    log.log_metrics({"train/loss": 0.25}, step=40)
    empty = {"train/loss": "", "epoch": "", "val/loss": "", "val/bleu": ""}
    assert read_csv(tmp_path) == [
        empty | {"step": "10", "train/loss": "2.5", "epoch": "0"},
        empty | {"step": "20", "train/loss": "2.0", "val/loss": "9.0", "val/bleu": "7.0"},
        empty | {"step": "30", "train/loss": "0.5"},
        empty | {"step": "40", "train/loss": "0.25"},
    ]


def test_metrics_file_of_a_resumed_run_continues_at_the_checkpoint(tmp_path: Path) -> None:
    killed = MetricsFile(tmp_path)
    for step in (10, 20, 30):
        killed.log_metrics({"train/loss": step / 10, "lr/slm": 0.1}, step=step)
    with killed.path.open("a", encoding="utf-8") as file:
        file.write("4")  # killed while it wrote the row of step 40
    before = killed.path.read_text(encoding="utf-8")

    resumed = MetricsFile(tmp_path)  # from the checkpoint of step 20; nothing is logged yet
    resumed.save()
    resumed.finalize("success")
    assert killed.path.read_text(encoding="utf-8") == before
    resumed.log_metrics({"train/loss": 7.0, "val/loss": 5.0}, step=30)
    resumed.log_metrics({"train/loss": 6.0}, step=40)
    rows = read_csv(tmp_path)
    assert [(row["step"], row["train/loss"], row["lr/slm"], row["val/loss"]) for row in rows] == [
        ("10", "1.0", "0.1", ""),
        ("20", "2.0", "0.1", ""),
        ("30", "7.0", "", "5.0"),
        ("40", "6.0", "", ""),
    ]


def test_a_metrics_file_of_another_program_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("epoch,loss\n1,2\n")
    with pytest.raises(UserError, match=r"metrics\.csv: not a metrics file"):
        MetricsFile(tmp_path).log_metrics({"train/loss": 1.0}, step=1)
    assert (tmp_path / "metrics.csv").read_text() == "epoch,loss\n1,2\n"
