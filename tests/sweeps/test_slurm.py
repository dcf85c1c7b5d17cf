"""`hydra/launcher=slurm` by submitit: its local executor runs, preempts and requeues jobs; the input of sbatch is read
from submitit's text. The jobs are `fake_job.py`."""

from __future__ import annotations

import os
import signal
import time

import pytest
import submitit
from test_launching import HERE, fake, jobs_in, seen  # noqa: F401  a fixture

from llm2slm.sweeps.jobs import read_record
from llm2slm.sweeps.progress import Reporter
from llm2slm.sweeps.run import Grid, Supervisor
from llm2slm.sweeps.settings import SlurmSettings
from llm2slm.sweeps.slurm import QueuedJob, SlurmLauncher, slurm_parameters
from llm2slm.types import UserError


@pytest.fixture
def module(monkeypatch, tmp_path):
    """Makes the other processes of submitit start `fake_job.py` too."""
    (tmp_path / "site").mkdir()
    text = "from llm2slm.sweeps import local\nlocal.MODULE = 'fake_job'\n"
    (tmp_path / "site" / "sitecustomize.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "site"), os.environ["PYTHONPATH"]]))


SETTINGS = SlurmSettings(executor="local", timeout_min=5, signal_delay_s=20)


@pytest.mark.slow
def test_jobs_run_and_report_through_submitit(tmp_path, module):
    jobs = jobs_in(tmp_path, ["done", "crash", "error"])
    launcher = SlurmLauncher(SETTINGS, tmp_path)
    assert launcher.free([], jobs) == 3
    assert SlurmLauncher(SlurmSettings(jobs=2, executor="local"), tmp_path).free([], jobs) == 2
    found = Supervisor(Grid(jobs), launcher, SETTINGS, Reporter(3, terminal=False)).run()
    records = [read_record(job.folder) for job in jobs]
    assert (found, [record.status for record in records]) == (0, ["done", "failed", "failed"])
    assert records[1].error.startswith("its process ended with exit code 3; ") and records[2].error == "a mistake"
    assert all((job.folder / "queued.txt").read_text() for job in jobs)


def test_a_preempted_job_saves_is_requeued_and_resumes(tmp_path, module):
    """The signal that Slurm sends before it preempts the job."""
    [job] = jobs_in(tmp_path, ["long"])
    [running] = SlurmLauncher(SETTINGS, tmp_path).start([job])
    assert isinstance(running, QueuedJob)
    while not (job.folder / "seen.jsonl").exists():
        assert not running.ended()
        time.sleep(0.05)
    os.kill(seen(job)[0]["parent"], signal.SIGUSR2)
    while not running.ended():
        time.sleep(0.05)
    record = read_record(job.folder)
    assert (job.folder / "saved").exists()
    assert (record.status, record.attempts, running.code()) == ("done", 2, 0)
    assert len(seen(job)) == 2


@pytest.mark.slow
def test_a_cancelled_job_saves_and_is_interrupted(tmp_path, module):
    [job] = jobs_in(tmp_path, ["long"])
    [running] = SlurmLauncher(SETTINGS, tmp_path).start([job])
    while not (job.folder / "seen.jsonl").exists():
        time.sleep(0.05)
    running.interrupt()
    while not running.ended():
        time.sleep(0.05)
    assert (read_record(job.folder).status, (job.folder / "saved").exists()) == ("interrupted", True)


def test_the_resources_in_the_input_of_sbatch(tmp_path):
    """One process and one GPU per device; jobs of equal resources in one array; requeued after preemption."""
    settings = SlurmSettings(
        partition="gpu", account="lab", timeout_min=90, mem_gb=64, jobs=3, setup=["module load cuda"],
        parameters={"reservation": "tonight"}, signal_delay_s=60,
    )  # fmt: skip
    [job] = jobs_in(tmp_path, ["done"], devices=2, nodes=2)
    given = slurm_parameters(settings, job)
    text = submitit.slurm.slurm._make_sbatch_string("run", tmp_path, map_count=5, **given)
    lines = set(text.splitlines())
    wanted = (
        "--partition=gpu", "--account=lab", "--time=90", "--mem=64G", "--nodes=2", "--ntasks-per-node=2",
        "--gpus-per-node=2", "--cpus-per-task=4", "--array=0-4%3", "--signal=USR2@60", "--reservation=tonight",
    )  # fmt: skip
    assert {f"#SBATCH {each}" for each in wanted} <= lines
    assert "module load cuda" in lines
    on_cpu = slurm_parameters(SlurmSettings(), jobs_in(tmp_path, ["done"], on_gpu=False)[0])
    assert "gpus_per_node" not in on_cpu


def test_a_missing_slurm_or_a_wrong_executor_is_reported_on_one_line(tmp_path, monkeypatch):
    jobs = jobs_in(tmp_path, ["done"])
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"^hydra/launcher=slurm: the jobs were not submitted \(.*srun.*\)$"):
        SlurmLauncher(SlurmSettings(), tmp_path).start(jobs)
    with pytest.raises(UserError, match=r"^hydra.launcher.executor=pbs: expected slurm or local$"):
        SlurmLauncher(SlurmSettings(executor="pbs"), tmp_path)
