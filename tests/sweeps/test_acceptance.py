"""A sweep of 24 trainings on two cores: two jobs crash, the command is killed during the sweep, and the same command
completes it."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import ROOT, python, tiny_overrides
from wandb_files import read_run

from llm2slm.sweeps.jobs import read_records

CRASHES = """
import os, sys, threading, time
words, here = " ".join(sys.orig_argv), os.environ["LLM2SLM_TEST_CRASHES"]

def first(name):
    try:
        os.close(os.open(f"{here}/{name}", os.O_CREAT | os.O_EXCL))
        return True
    except FileExistsError:
        return False

def killed(folder):
    while not os.path.exists(f"{folder}/metrics.csv"):
        time.sleep(0.01)
    os.kill(os.getpid(), 9)

if "llm2slm.cli.job" in words and "seed=2" in words and "optim.lr=0.01" in words:
    if "conditioning=replace" in words and first("exit"):
        os._exit(3)
    if "conditioning=memory" in words and first("kill"):
        threading.Thread(target=killed, args=(os.environ["LLM2SLM_JOB"],), daemon=True).start()
"""
"""`sitecustomize.py` of the jobs: one exits without a message at its start, one is killed in training; once each."""
GRID = ["model.conditioning=add,replace,prepend,memory", "optim.lr=0.001,0.01", "seed=1,2,3"]

WANDB = ["logger=wandb", "logger.mode=offline"]


@pytest.mark.slow
def test_a_sweep_with_crashes_and_a_kill_is_complete_after_the_same_command(tmp_path, tiny_llm):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(CRASHES)
    environment = {
        "PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), str(ROOT)]),
        "LLM2SLM_TEST_CRASHES": str(tmp_path / "site"),
        "COLUMNS": "160",
    }
    command = [
        "-m",
        "llm2slm",
        "train",
        "-m",
        *tiny_overrides(tiny_llm),
        "trainer.max_steps=4",
        *GRID,
        "jobs=2",
        *WANDB,
    ]
    command = [word for word in command if word != "trainer.max_steps=2"] + ["jobs=2", "hydra.sweep.dir=sweep"]
    sweep = tmp_path / "sweep"

    first = subprocess.Popen(
        [sys.executable, *command], cwd=tmp_path, env=os.environ | environment,
        stdout=(tmp_path / "first.txt").open("w"), stderr=subprocess.STDOUT,
    )  # fmt: skip
    while sum(record.status == "done" for record in read_records(sweep)) < 9:
        assert first.poll() is None, (tmp_path / "first.txt").read_text()
        time.sleep(0.2)
    first.kill()
    first.wait()
    while any(record.status == "running" for record in read_records(sweep)):
        time.sleep(0.2)
    before = {record.folder: record for record in read_records(sweep)}
    done = {name: (sweep / name / "result.json").stat().st_mtime_ns for name, r in before.items() if r.complete}
    assert len(before) == 24 and 9 <= len(done) < 24
    states = {record.status for record in before.values()}
    assert "pending" in states and states <= {"done", "failed", "interrupted", "pending"}

    again = python(*command, cwd=tmp_path, **environment)
    shown = again.stdout + again.stderr
    if again.returncode:  # a crash that had not occurred before occurred now
        assert again.returncode == 1 and "failed" in again.stdout, shown
        assert "to complete the sweep (jobs that are done are skipped): llm2slm train -m " in again.stdout, shown
        again = python(*command, cwd=tmp_path, **environment)
        shown = again.stdout + again.stderr
    assert again.returncode == 0, shown
    assert f"{len(done)} of 24 jobs are complete and skipped" in shown or "of 24 jobs are complete" in shown

    records = read_records(sweep)
    assert [record.status for record in records] == ["done"] * 24
    assert {name: (sweep / name / "result.json").stat().st_mtime_ns for name in done} == done
    crashed = [record for record in records if record.attempts > 1]
    assert {"exit", "kill"} <= {path.name for path in (tmp_path / "site").iterdir()}
    assert len(crashed) >= 2 and max(record.attempts for record in records) <= 3
    with (sweep / "sweep.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    expected = [
        (mode, rate, seed)
        for mode in ("add", "replace", "prepend", "memory")
        for rate in ("0.001", "0.01")
        for seed in "123"
    ]
    assert [(r["model.conditioning"], r["optim.lr"], r["seed"]) for r in rows] == expected
    assert all(row["val/loss"] and row["bleu"] and row["status"] == "done" and not row.get("error") for row in rows)
    check_wandb(sweep, rows)
    check_report(tmp_path, sweep, rows)


def check_wandb(sweep: Path, rows: list[dict[str, str]]) -> None:
    """The offline runs of the jobs: one W&B run for each job, in the group of the sweep, with the values of the job."""
    ids = []
    for row in rows:
        folder = sweep / row["job"]
        parts = sorted(path.name for path in folder.glob("wandb/offline-run-*"))
        last = read_run(folder, parts[-1])
        # a resumed job continues its run; a job that was killed before its first checkpoint has a new run
        assert last["id"] == (folder / "wandb" / "run-id").read_text()
        ids.append(last["id"])
        assert last["exit"] == 0 and last["group"] == "sweep"
        config = last["config"]
        model, rate, seed = config["model"]["conditioning"], config["optim"]["lr"], config["seed"]
        assert (model, str(rate), str(seed)) == (row["model.conditioning"], row["optim.lr"], row["seed"])
        losses = [item["val/loss"] for item in last["history"] if "val/loss" in item]
        best = float(row["val/loss"])  # rounded; a resumed job may have it in an earlier part, and an empty last one
        assert losses or len(parts) > 1
        assert min(losses) == pytest.approx(best, abs=1e-3) if len(parts) == 1 else all(n > best - 1e-3 for n in losses)
    assert len(set(ids)) == len(rows) == 24


def check_report(folder: Path, sweep: Path, rows: list[dict[str, str]]) -> None:
    """`llm2slm report SWEEP`: seeds, factors and the best runs, compared with the table of the sweep."""
    made = python("-m", "llm2slm", "report", "sweep", "out=page", cwd=folder, COLUMNS="160")
    assert made.returncode == 0, made.stderr
    losses = {(r["model.conditioning"], r["optim.lr"], r["seed"]): float(r["val/loss"]) for r in rows}
    best = min(losses, key=lambda key: losses[key])
    head = f"best by validation: {best[0]} · lr={best[1]} · seed={best[2]} (loss {losses[best]:.2f} at step "
    assert head.lower() in made.stdout.lower().replace("\n", " "), made.stdout
    seeds = [line.split() for line in made.stdout.splitlines() if line.strip().startswith("conditioning=")]
    groups = {(words[0].partition("=")[2], words[2].partition("=")[2]): words for words in seeds}
    assert len(groups) == 8
    for (mode, rate), words in groups.items():
        mean = sum(losses[mode, rate, seed] for seed in "123") / 3
        assert words[3] == "3" and abs(float(words[4]) - mean) < 0.006 and words[5] == "±"
    page = (folder / "page" / "report.html").read_text("utf-8")
    for part in ("Best runs by validation", "Runs that differ in the seed alone", "Effect of each factor",
                 "Validation loss by conditioning", "Validation loss by lr", "the Pareto front"):  # fmt: skip
        assert part in page, part
    assert json.loads((sweep / "sweep.json").read_text())["verb"] == "train"
