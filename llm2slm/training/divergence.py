"""Detection of a loss that is not finite: the run ends before a checkpoint is written, and the batch is saved."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llm2slm.atomic import replacing
from llm2slm.types import Batch, UserError

FOLDER = "diverged"
"""Subfolder of the run directory with the batches, one file per process."""


def diverged(name: str, value: float, step: int) -> str:
    """The error message for a value that is not finite."""
    return (
        f"training diverged: {name} is {value} at step {step}; lower optim.lr, warm up longer (optim.warmup_steps), "
        "clip (trainer.gradient_clip_val), and use bf16 rather than fp16 (T5 overflows in it)"
    )


class LossWatch:
    """The losses of the last optimizer steps with their batches.

    A loss is examined at the next step, when the device has computed it, so that a GPU is never waited for; and at once
    where its value is needed (`check`). The weights of the step may then be damaged, so `check` precedes each
    checkpoint.

    Args:
        folder: the run directory. rank: of this process.
    """

    def __init__(self, folder: Path, rank: int = 0) -> None:
        self.path = folder / FOLDER / f"rank_{rank}.pt"
        self._window: list[tuple[Batch, Tensor]] = []
        self._previous: list[tuple[Batch, Tensor]] = []
        self._step: tuple[int, Tensor, list[tuple[Batch, Tensor]]] | None = None

    def add(self, batch: Batch, loss: Tensor) -> None:
        """Adds a batch of the current step with its summed loss."""
        self._window.append((batch, loss.detach()))

    def stepped(self, step: int, loss: Tensor) -> None:
        """Examines the step before, and records this one.

        Args:
            step: its number, from 1. loss: of all processes, equal in each of them.

        Raises:
            UserError: as `check`.
        """
        self.check()
        self._step, self._window = (step, loss.detach(), self._window), []

    def check(self) -> None:
        """Examines the recorded step.

        Raises:
            UserError: its loss is not finite. The batches of this process whose loss is not finite are in
                `diverged/rank_N.pt`, with those of the step before, whose gradient may be the cause.
        """
        if self._step is None:
            return
        (step, total, batches), self._step = self._step, None
        if torch.isfinite(total):
            self._previous = batches
            return
        found = [(batch, loss) for batch, loss in batches if not torch.isfinite(loss)]
        if found:
            content = {"step": step, "batches": _plain(found), "previous": _plain(self._previous)}
            with replacing(self.path) as file:
                torch.save(content, file)
        message = diverged("train/loss", float(total), step)
        raise UserError(f"{message}; the batch is saved in {self.path.parent}")


def _plain(batches: list[tuple[Batch, Tensor]]) -> list[dict[str, Any]]:
    """Batches as plain values that torch.load(weights_only=True) reads: fields of `Batch`, and the summed loss."""
    return [
        {f.name: _on_cpu(getattr(batch, f.name)) for f in fields(batch) if f.name != "teacher"} | {"loss": float(loss)}
        for batch, loss in batches
    ]


def _on_cpu(value: Any) -> Any:
    return value.detach().cpu() if isinstance(value, Tensor) else value
