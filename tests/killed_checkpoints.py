"""Trainings that are killed (SIGKILL) at random moments. Each is a fork of this process, which has loaded all modules;
run by `tests/training/test_checkpoint_files.py`.

    python tests/killed_checkpoints.py FOLDER KILLS

A checkpoint is written at every step, and the parent reads `last.ckpt` continuously. Prints a JSON line: the numbers of
killed trainings and of reads, the damage found, the steps that were resumed from, and whether each run is identical to
the undisturbed one.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from copy import deepcopy
from pathlib import Path

import torch
from forks import finished, forked
from stopped_runs import state_of
from tiny_runs import checkpoint, curve, taught, tiny_run

from llm2slm.training.checkpoint_io import damage
from llm2slm.training.fit import fit, set_seed
from llm2slm.training.loggers import MetricsFile


def main(home: Path, kills: int) -> dict[str, object]:
    """Trains and kills until the number is reached, and then completes."""
    torch.set_num_threads(1)
    os.fsync = lambda _: None  # a killed process loses no written data; only a power cut would
    draw = random.Random(0)
    config = tiny_run(home, max_steps=10, val_every=1)
    config.callbacks.generate_rows, config.data.eval_batch_size = 0, 16
    config.model.slm.tune = "none"
    config.model.projector.hidden = 4000  # few tensors, large ones
    set_seed(config.seed)
    model, data, _ = taught(config)
    untrained = deepcopy(model.state_dict())

    def train(folder: Path) -> None:
        set_seed(config.seed)
        model.load_state_dict(untrained)
        last = folder / "checkpoints" / "last.ckpt"
        fit(config, folder, model, data, loggers=[MetricsFile(folder)], resume=last if last.is_file() else None)

    started = time.perf_counter()
    train(home / "whole")
    seconds = time.perf_counter() - started
    whole = state_of(home / "whole")[0]
    killed, looks, damaged, resumed_from, same = 0, 0, [], [], []
    while killed < kills:
        folder = home / f"run_{len(same)}"
        last = folder / "checkpoints" / "last.ckpt"
        while True:
            when = (draw.randint(1, 3), draw.uniform(0, seconds / config.trainer.max_steps))
            ended, seen = watched(train, folder, when if killed < kills else None)
            looks += len(seen)
            damaged += [reason for reason in seen if reason is not None]
            if ended:
                break
            killed += 1
            if last.is_file():
                damaged += [damage(last)] if damage(last) else []
                resumed_from.append(int(checkpoint(last)["global_step"]))
        found = state_of(folder)[0]
        parts = {path.name for path in last.parent.iterdir()} == {"last.ckpt", "previous.ckpt", "best.ckpt"}
        parts = parts and curve(folder) == curve(home / "whole")
        same.append(parts and found.keys() == whole.keys() and all(torch.equal(found[k], v) for k, v in whole.items()))
    return {"killed": killed, "looks": looks, "damaged": damaged, "resumed_from": resumed_from, "same": all(same),
            "seconds": round(seconds, 2)}  # fmt: skip


def watched(train, folder: Path, when: tuple[int, float] | None) -> tuple[bool, list[str | None]]:
    """Trains in a fork that is killed so many seconds after so many checkpoints (None: never). Whether it completed
    before, and the findings of all reads of its last checkpoint."""
    child, seen = forked(lambda: train(folder)), []
    last = folder / "checkpoints" / "last.ckpt"
    versions, end, done = {version(last)}, None, 0
    while when is not None and not done and (end is None or time.perf_counter() < end):
        versions.add(version(last))
        if end is None and len(versions) > when[0]:
            end = time.perf_counter() + when[1]
        if last.is_file():
            seen.append(damage(last))
        time.sleep(0.005)
        done, status = os.waitpid(child, os.WNOHANG)
    if when is not None and not done:
        os.kill(child, signal.SIGKILL)
    if not done:
        _, status = os.waitpid(child, 0)
    return finished(status), seen


def version(path: Path) -> tuple[int, int] | None:
    """Identifies a file, to distinguish it from its replacement."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]))))
