"""Checkpoints as files: how they are written, and which one a training resumes from.

Each is written under a hidden name beside its place and renamed when it is whole (`atomic`), so a killed process never
damages one. Only a fault of the disk does. Then a training resumes from the other of the two: `best.ckpt` holds all
that `last.ckpt` holds, of an earlier step. A third file, of the validation before, would cost weights and optimizer
state once more for the case that both are damaged at once.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_only

from llm2slm.atomic import hidden, replacing
from llm2slm.types import UserError, reason_of

CHECKPOINTS, LAST, BEST = "checkpoints", "last.ckpt", "best.ckpt"
KEYS = ("global_step", "state_dict", "loops", "optimizer_states")
"""What a checkpoint has at least."""


class CheckpointFiles(TorchCheckpointIO):
    """How Lightning writes checkpoints, whatever asks for one: whole, and beside their place."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Writes a checkpoint, in one step.

        Raises:
            NotWritten: it cannot be written; the file that was there before is unchanged.
        """
        if storage_options is not None:
            raise TypeError("checkpoints are local files: storage_options are not used")
        with replacing(Path(path)) as file:
            torch.save(checkpoint, file)


def read(path: Path) -> dict[str, Any]:
    """A checkpoint that is known to be whole, on the CPU, its tensors mapped from the file."""
    loaded: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return loaded


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint's file; None: it is whole. Reads all of it and compares the checksums."""
    try:
        with ZipFile(path) as archive:
            if (broken := archive.testzip()) is not None:
                return f"is damaged (checksum of {broken})"
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        return "is missing"
    except (BadZipFile, EOFError) as error:
        return f"is damaged ({reason_of(error)})"
    except Exception as error:  # a whole archive of something else, or a file that the system refuses to read
        return f"cannot be read ({reason_of(error)})"
    if not isinstance(loaded, dict) or (missing := [key for key in KEYS if key not in loaded]):
        return f"is no checkpoint of a training{f' (it has no {missing[0]})' if isinstance(loaded, dict) else ''}"
    return None


def clear_partial(folder: Path) -> None:
    """Removes what killed processes left of checkpoints that they were writing."""
    for name in (LAST, BEST):
        hidden(folder / name).unlink(missing_ok=True)


def newest_whole(folder: Path) -> Path | None:
    """The checkpoint to resume from: the last, or the best where the last is damaged; None where there is neither.

    A damaged file is reported in one line, with the steps that are lost. A damaged `best.ckpt` is renamed to
    `best.ckpt.damaged`: the best is then chosen among the validations to come.

    Args:
        folder: `checkpoints/` of a run directory.

    Raises:
        UserError: none of them can be read.
    """
    last, best = folder / LAST, folder / BEST
    if not last.is_file() and not best.is_file():
        return None
    of_last, of_best = damage(last), damage(best)
    if of_last is None:
        if best.is_file() and of_best is not None and int(rank_zero_only.rank) == 0:
            aside = best.rename(best.with_name(f"{BEST}.damaged"))
            report(f"{best}: {of_best}; it is now {aside.name}, and the best is chosen among validations to come")
        return last
    if of_best is None:
        report(f"{last}: {of_last}; resuming from {BEST} instead, {_lost(best, folder.parent / 'metrics.csv')}")
        return best
    raise UserError(
        f"{last}: {of_last}, and {BEST} {of_best}, so nothing is left to resume from; train anew in another folder, "
        "without run="
    )


def _lost(path: Path, metrics: Path) -> str:
    """Which steps a training repeats that resumes from a checkpoint."""
    step = int(read(path)["global_step"])
    try:
        with metrics.open(newline="", encoding="utf-8") as file:
            reached = max(int(row["step"]) for row in csv.DictReader(file)) + 1  # Lightning counts them from 0
    except (OSError, ValueError, KeyError, TypeError):
        return f"of step {step}: the steps after it are trained again"
    if reached <= step:
        return f"of step {step}: no step is lost"
    steps = f"step {reached} is" if reached == step + 1 else f"steps {step + 1} to {reached} are"
    return f"of step {step}: {steps} trained again"


def report(line: str) -> None:
    """Prints a line to stderr, in the first process alone."""
    if int(rank_zero_only.rank) == 0:
        print(f"llm2slm: {line}", file=sys.stderr)
