"""Real trainings as jobs in separate processes: several processes per job, resuming, trials of a study."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import ROOT, python, tiny_overrides
from tiny_runs import assert_same, checkpoint, curve

from llm2slm import runs
from llm2slm.sweeps.jobs import read_record, read_records

pytestmark = pytest.mark.slow
ENVIRONMENT = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def train(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return python("-m", "llm2slm", "train", *arguments, cwd=tmp_path, **ENVIRONMENT)


def test_a_job_may_have_several_processes(tmp_path, tiny_llm):
    """Lightning starts the second process with the command of the job, not with that of the sweep."""
    tiny = [each for each in tiny_overrides(tiny_llm) if "accelerator" not in each]
    done = train(tmp_path, "-m", *tiny, "trainer=ddp_cpu", "seed=1,2", "hydra.sweep.dir=sweep")
    assert done.returncode == 0, done.stdout + done.stderr
    records = read_records(tmp_path / "sweep")
    assert [(record.status, record.attempts) for record in records] == [("done", 1)] * 2
    for seed, record in enumerate(records, 1):
        folder = tmp_path / "sweep" / record.folder
        config = runs.read_config(folder)
        assert (config["seed"], config["trainer"]["devices"], config["trainer"]["strategy"]) == (seed, 2, "ddp")
        assert len(checkpoint(folder / "checkpoints" / "last.ckpt")["random_states"]) == 2
        assert runs.read_result(folder)["systems"][0]["quality"]


def test_a_stopped_sweep_resumes_its_training_exactly(tmp_path, tiny_llm):
    tiny = [each for each in tiny_overrides(tiny_llm) if "max_steps" not in each]
    whole = [*tiny, "trainer.max_steps=60", "trainer.val_every=20", "trainer.log_every_n_steps=1"]
    command = [sys.executable, "-m", "llm2slm", "train", "-m", *whole, "seed=1,2", "hydra.sweep.dir=sweep"]
    process = subprocess.Popen(command, cwd=tmp_path, env=os.environ | ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    folder = tmp_path / "sweep" / "0"
    while not (folder / "metrics.csv").is_file():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    shown = process.communicate()[0]
    assert process.returncode == 128 + signal.SIGTERM, shown
    assert [record.status for record in read_records(tmp_path / "sweep")] == ["interrupted", "pending"]
    assert shown.splitlines()[-1].startswith(
        "to complete the sweep (jobs that are done are skipped): llm2slm train -m "
    )
    stopped_at = checkpoint(folder / "checkpoints" / "last.ckpt")["global_step"]
    assert 0 < stopped_at < 60
    again = train(tmp_path, *command[4:])
    assert again.returncode == 0, again.stdout + again.stderr
    assert "job 0 (resumes): seed=1" in again.stdout
    assert read_record(folder).attempts == 2
    alone = train(tmp_path, *whole, "seed=1", "hydra.run.dir=alone")
    assert alone.returncode == 0, alone.stderr
    for name in ("last.ckpt", "best.ckpt"):
        states = [checkpoint(each / "checkpoints" / name)["state_dict"] for each in (folder, tmp_path / "alone")]
        assert_same(*states)
    assert curve(folder) == curve(tmp_path / "alone")


def test_a_study_of_trainings_is_completed(tmp_path, tiny_llm):
    words = ["-m", *tiny_overrides(tiny_llm), "sweeper=optuna", "optim.lr=tag(log, interval(1e-3, 1e-1))"]
    words += ["model.conditioning=add,memory", "hydra.sweeper.trials=3", "jobs=2", "hydra.sweep.dir=study"]
    done = train(tmp_path, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    import optuna
    from optuna.storages.journal import JournalFileBackend, JournalStorage

    storage = JournalStorage(JournalFileBackend(str(tmp_path / "study" / "study.log")))
    study = optuna.load_study(study_name="study", storage=storage)
    assert study.direction.name == "MINIMIZE" and study.user_attrs == {"objective": "val/loss"}
    for record in read_records(tmp_path / "study"):
        trial, folder = study.trials[record.trial], tmp_path / "study" / record.folder
        assert trial.value == json.loads((folder / "result.json").read_text())["selection"]["value"]
        assert 1e-3 <= runs.read_config(folder)["optim"]["lr"] == trial.params["optim.lr"] <= 1e-1
        assert runs.read_config(folder)["model"]["conditioning"] == trial.params["model.conditioning"]
    assert len(study.trials) == 3
