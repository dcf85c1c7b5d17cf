"""Labels in processes that are killed (SIGKILL) at random moments. Each is a fork of this one, which has loaded all
modules; run by `tests/commands/test_label.py`.

    python tests/killed_labels.py FOLDER KILLS

It is a separate process, since a fork of a process that has trained may wait forever for a lock of another thread.
Prints a JSON line: the number of kills, the number of labels after each, and whether each file is identical to that of
an undisturbed run.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from pathlib import Path
from threading import RLock
from typing import Any

import torch
from killed import killed_midway
from tiny_runs import SIZES, tiny_run
from tqdm import tqdm

from llm2slm.commands import label


def own_locks(bar: type[Any]) -> None:
    """Gives a process separate locks for progress bars. All forks share the locks of tqdm: a fork that is killed while
    it holds one would block all others forever."""
    bar.set_lock(RLock())
    for kind in bar.__subclasses__():
        own_locks(kind)


def main(home: Path, kills: int) -> dict[str, object]:
    """Labels and kills until the number is reached, and then completes."""
    torch.set_num_threads(1)
    tqdm.monitor_interval = 0  # no tqdm thread, which could hold a lock during a fork
    own_locks(tqdm)
    config = tiny_run(home, threads=1)
    config.split, config.data.eval_batch_size = "train", 2
    rng = random.Random(7)

    def fill(folder: Path) -> None:
        own_locks(tqdm)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        label.run(config, folder)

    label.run(config, home / "warm")
    started = time.perf_counter()
    label.run(config, home / "whole")
    seconds = time.perf_counter() - started
    whole = (home / "whole" / "labels.jsonl").read_bytes()
    killed, held, same = 0, [], []
    while killed < kills:
        folder, before = home / f"killed_{len(same)}", 0
        while killed_midway(fill, folder, rng.uniform(0.1, 0.9) * seconds if killed < kills else None):
            killed += 1
            partial = folder / "labels.jsonl.part"
            if partial.is_file():
                now = max(0, partial.read_bytes().count(b"\n") - 1)  # its first line records the settings
                assert now >= before, "something that was finished is lost"
                before = now
            held.append(before)
        same.append((folder / "labels.jsonl").read_bytes() == whole)
        assert {path.name for path in folder.iterdir()} == {"labels.jsonl", "config.yaml", "result.json"}
    return {"killed": killed, "labels": SIZES["train"], "held": held, "same": same}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]))))
