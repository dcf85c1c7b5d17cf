"""Fills stores in processes that are killed (SIGKILL) at random moments. Each is a fork of this one, which has loaded
all modules; run by `tests/test_offline.py`.

    python tests/killed.py FOLDER KILLS

Prints a JSON line: the number of kills, the state found after each, and whether each store is identical to the first,
undisturbed one.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from hashlib import sha256
from pathlib import Path

import torch
from forks import finished, forked

from llm2slm import offline
from llm2slm.data.reps.store import RepsStore
from llm2slm.models.build import build_model
from llm2slm.testing import tiny_model_config
from llm2slm.types import Example

SHARD_BYTES = 20_000
BATCH_TOKENS = 128
WORDS = ["the", "old", "dog", "sees", "a", "house", "two", "little", "dogs", "see", "it", "no"]


def main(home: Path, kills: int) -> dict[str, object]:
    """Fills and kills until the number is reached, and then completes."""
    torch.set_num_threads(1)
    os.fsync = lambda _: None  # a killed process loses no written data; only a power cut would
    rng = random.Random(0)
    model = build_model(tiny_model_config(home / "zoo"))
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(1, 20))) for _ in range(240)]
    rows = model.collator.encode([Example(i, text, text, "no") for i, text in enumerate(texts)])

    def fill(folder: Path) -> None:
        """A whole command: two splits that share rows, and the embedding matrix."""
        with offline.open_writer(folder, model, shard_bytes=SHARD_BYTES) as store:
            offline.add_embeddings(model, store)
            for split in (rows[:160], rows[140:]):
                offline.encode(model, split, store, BATCH_TOKENS, progress=False)

    fill(home / "warm")
    started = time.perf_counter()
    fill(home / "whole")
    seconds = time.perf_counter() - started
    whole = contents(home / "whole")
    killed, torn, held, same = 0, 0, [], []
    while killed < kills:
        folder, before = home / f"store_{len(same)}", 0
        while killed_midway(fill, folder, rng.uniform(0, 0.7 * seconds) if killed < kills else None):
            killed += 1
            if (folder / "store.json").is_file():
                store = RepsStore(folder)
                assert len(store) >= before, "something that was finished is lost"
                before = len(store)
                torn += bool({path.name for path in folder.iterdir()} - files_of(store))
            held.append(before)
        same.append(contents(folder) == whole)
    return {"killed": killed, "seconds": round(seconds, 2), "prompts": len(RepsStore(home / "whole")),
            "files": len(whole), "held": held, "torn": torn, "same": same}  # fmt: skip


def killed_midway(fill, folder: Path, after: float | None) -> bool:
    """Fills a store in a fork that is killed after so many seconds (None: never). Whether it was killed midway."""
    child = forked(lambda: fill(folder))
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    return not finished(os.waitpid(child, 0)[1])


def contents(folder: Path) -> dict[str, str]:
    """The checksum of every file."""
    return {path.name: sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def files_of(store: RepsStore) -> set[str]:
    """Names of the files that an undisturbed process would have written at that point."""
    return {"store.json", "index.jsonl", *(entry.file for entry in store.index.entries)}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]))))
