"""`llm2slm train` killed (SIGKILL) at random moments and resumed by `run=`: the files of an undisturbed run.

`test_checkpoint_files.py` kills forks of `fit`; here the command itself is killed, from its start to its result.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import ROOT
from tiny_runs import SIZES, curve, tiny_run

from llm2slm.runs import read_result

KILLS = 20
FILES = ("model", "predictions.jsonl", "samples.jsonl")


class Command:
    """A training as a separate process, whose output is in a file."""

    def __init__(self, words: list[str], shown: Path) -> None:
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        self.shown, self.started = shown, time.monotonic()
        with shown.open("wb") as file:
            command = [sys.executable, "-m", "llm2slm", "train", *words]
            self.process = subprocess.Popen(command, env=env, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)

    def begun(self) -> bool:
        """Whether its data are printed, after which it trains."""
        return b"response tokens" in self.shown.read_bytes()

    def wait(self, seconds: float | None, *, training: bool) -> bool:
        """Waits for its end, or so many seconds from its start (or that of training). Whether it has ended."""
        since = None if training else self.started
        while self.process.poll() is None:
            since = time.monotonic() if since is None and self.begun() else since
            if seconds is not None and since is not None and time.monotonic() > since + seconds:
                return False
            time.sleep(0.002)
        return True

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def contents(folder: Path) -> dict[str, bytes]:
    """The files that a run leaves, by name."""
    paths = [path for name in FILES for path in (folder / name, *(folder / name).rglob("*")) if path.is_file()]
    found = {str(path.relative_to(folder)): path.read_bytes() for path in paths}
    found["model/README.md"] = re.sub(rb"(?m)^\* \d+ steps in .*$", b"", found["model/README.md"])  # the duration
    return found


@pytest.mark.slow
def test_a_command_killed_at_random_moments_ends_with_the_files_of_an_undisturbed_one(tmp_path):
    """One in five kills is in the start of the process, the others between the first step and the result."""
    config, draw = tiny_run(tmp_path), random.Random(0)
    words = [
        f"model.llm.name={config.model.llm.name}", f"model.slm.name={config.model.slm.name}",
        "model.slm.init=pretrained", "model.conditioning=add", "data=json", "data.source=source", "data.target=target",
        *(f"data.{split}={tmp_path}/rows/{split}.jsonl" for split in SIZES), "task=instruction", "seed=5",
        "data.batch_tokens=220", "data.eval_batch_size=4", "trainer.accelerator=cpu", "trainer.max_steps=24",
        "trainer.val_every=2", "trainer.log_every_n_steps=1", "trainer.progress=false", "callbacks.generate_rows=3",
        "optim.warmup_steps=2", "optim.lr=3e-3", "task.max_new_tokens=6",
    ]  # fmt: skip
    whole = tmp_path / "whole" / "run"
    first = Command([*words, f"hydra.run.dir={whole}"], tmp_path / "shown")
    assert not first.wait(0.0, training=True), first.shown.read_text()
    begun = time.monotonic()
    assert first.wait(None, training=False) and first.process.returncode == 0, first.shown.read_text()
    before, training = begun - first.started, time.monotonic() - begun
    kills, runs, resumed = 0, 0, 0
    while kills < KILLS:
        runs += 1
        folder = tmp_path / f"killed{runs}" / "run"
        while not (folder / "result.json").is_file():
            again = (folder / "config.yaml").is_file()
            command = Command([f"run={folder}"] if again else [*words, f"hydra.run.dir={folder}"], tmp_path / "shown")
            early = draw.random() < 0.2
            seconds = draw.uniform(0, before if early else training / 3) if kills < KILLS else None
            if command.wait(seconds, training=not early):
                assert command.process.returncode == 0, command.shown.read_text()
                break
            command.kill()
            kills += 1
            resumed += (folder / "checkpoints" / "last.ckpt").is_file()
        assert curve(folder) == curve(whole)
        found, wanted = contents(folder), contents(whole)
        assert found.keys() == wanted.keys()
        for name, content in wanted.items():
            assert found[name] == content, name
        assert read_result(folder)["selection"] == read_result(whole)["selection"]
    assert resumed > KILLS / 4
