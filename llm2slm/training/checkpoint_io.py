"""Checkpoint files: atomic writes, integrity checks, and the choice of the file to resume from.

Each file is written under a temporary hidden name and renamed when complete (`atomic`), so that a killed process never
damages one. The last checkpoint but one is kept as `previous.ckpt`. If a disk fault damages `last.ckpt`, training
resumes from the newer one of `previous.ckpt` and `best.ckpt`.
"""

from __future__ import annotations

import csv
import os
import shutil
import sys
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from llm2slm.atomic import hidden, replacing, writing
from llm2slm.ranks import first_process
from llm2slm.runs import METRICS
from llm2slm.types import UserError, reason_of

CHECKPOINTS, LAST, PREVIOUS, BEST = "checkpoints", "last.ckpt", "previous.ckpt", "best.ckpt"
KEYS = ("global_step", "state_dict", "loops", "optimizer_states")
"""Keys that every checkpoint has."""


class CheckpointFiles(TorchCheckpointIO):
    """Lightning's checkpoint writer, made atomic."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Writes a checkpoint atomically.

        Raises:
            NotWritten: the file cannot be written; a previous file is unchanged.
        """
        if storage_options is not None:
            raise TypeError("checkpoints are local files: storage_options are not used")
        path = Path(path)
        if path.name == LAST and path.is_file():
            keep(path, path.with_name(PREVIOUS))
        with replacing(path) as file:
            torch.save(checkpoint, file)


def keep(path: Path, copy: Path) -> None:
    """Makes `copy` a second name of a file, atomically, before `path` is replaced. `path` exists at any time.

    Raises:
        NotWritten: it cannot be written.
    """
    with writing(copy):
        hidden(copy).unlink(missing_ok=True)
        try:
            os.link(path, hidden(copy))
        except OSError:  # a file system without hard links
            shutil.copyfile(path, hidden(copy))
        hidden(copy).replace(copy)


def read(path: Path) -> dict[str, Any]:
    """Loads an undamaged checkpoint on the CPU; its tensors are memory-mapped."""
    loaded: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return loaded


def damage(path: Path) -> str | None:
    """The defect of a checkpoint file, by the checksums of its whole contents; None: undamaged."""
    try:
        with ZipFile(path) as archive:
            if (broken := archive.testzip()) is not None:
                return f"is damaged (checksum of {broken})"
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        return "is missing"
    except (BadZipFile, EOFError) as error:
        return f"is damaged ({reason_of(error)})"
    except Exception as error:  # an archive of something else, or a file without read permission
        return f"cannot be read ({reason_of(error)})"
    if not isinstance(loaded, dict) or (missing := [key for key in KEYS if key not in loaded]):
        return f"is no checkpoint of a training{f' (it has no {missing[0]})' if isinstance(loaded, dict) else ''}"
    return None


def clear_partial(folder: Path) -> None:
    """Removes partial checkpoints of killed processes."""
    for name in (LAST, PREVIOUS, BEST):
        hidden(folder / name).unlink(missing_ok=True)


def newest_undamaged(folder: Path) -> Path | None:
    """The checkpoint to resume from: the last one, or if it is damaged the newest of the others; None: there is none.

    A damaged file is reported on one line with the number of lost steps, and renamed to `NAME.damaged`. Without
    `best.ckpt` the best checkpoint is chosen among later validations.

    Args:
        folder: `checkpoints/` of a run directory.

    Raises:
        UserError: none can be read; then no file is renamed.
    """
    last, previous, best = (folder / name for name in (LAST, PREVIOUS, BEST))
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file, and should be the folder of the checkpoints; train anew, without run=")
    if not any(path.exists() for path in (last, previous, best)):
        return None
    damaged = {path: damage(path) for path in (last, best)}
    chosen = last
    if damaged[last] is not None:
        damaged[previous] = damage(previous)
        undamaged = [path for path in (previous, best) if damaged[path] is None]
        if not undamaged:
            others = f"{PREVIOUS} {damaged[previous]}, and {BEST} {damaged[best]}"
            raise UserError(
                f"{last}: {damaged[last]}, {others}, so nothing is left to resume from; train anew in another folder, "
                "without run="
            )
        chosen = max(undamaged, key=lambda path: int(read(path)["global_step"]))
        repeated = _repeated_steps(chosen, folder.parent / METRICS)
        report(f"{last}: {damaged[last]}; resuming from {chosen.name} instead, {repeated}")
    for path in (last, previous, best):
        if damaged.get(path) is not None and path.is_file() and first_process():
            with writing(path):
                renamed = path.rename(path.with_name(f"{path.name}.damaged"))
            if path == best:
                anew = "the best is chosen among validations to come"
                report(f"{best}: {damaged[best]}; it is now {renamed.name}, and {anew}")
    return chosen


def _repeated_steps(path: Path, metrics: Path) -> str:
    """The steps that training repeats when it resumes from a checkpoint, in words."""
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
    """Prints a line to stderr in the first process only."""
    if first_process():
        print(f"llm2slm: {line}", file=sys.stderr)
