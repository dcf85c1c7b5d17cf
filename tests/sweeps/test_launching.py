"""Jobs in processes of this machine that are started, killed, crashed and stopped. The jobs are `fake_job.py`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from command_line import ROOT
from sampling import representatives

from llm2slm.sweeps import local
from llm2slm.sweeps.jobs import Job, JobRecord, read_record
from llm2slm.sweeps.local import LocalLauncher
from llm2slm.sweeps.progress import Reporter
from llm2slm.sweeps.run import Grid, Supervisor
from llm2slm.sweeps.settings import LocalSettings
from llm2slm.types import UserError

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    monkeypatch.setattr(local, "MODULE", "fake_job")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def jobs_in(folder, acts, **more):
    """A pending job for each act."""
    found = []
    for number, act in enumerate(acts):
        job = Job(number, folder / str(number), [f"act={act}"], ["train", f"act={act}"], varied=("act",), **more)
        job.folder.mkdir(parents=True, exist_ok=True)
        if not (job.folder / "job.json").exists():
            JobRecord(job.overrides, "pending").write(job.folder)
        found.append(job)
    return found


def launched(queue, gpus=(), **settings):
    """Runs jobs; returns the signal that stopped them, and their states."""
    chosen = LocalSettings(**settings)
    launcher = LocalLauncher(chosen, queue, gpus)
    found = Supervisor(Grid(queue), launcher, chosen, Reporter(len(queue), terminal=False)).run()
    return found, [read_record(job.folder).status for job in queue]


def seen(job):
    return [json.loads(line) for line in (job.folder / "seen.jsonl").read_text().splitlines()]


def test_a_crash_does_not_stop_the_other_jobs_and_is_reported(tmp_path, capsys):
    jobs = jobs_in(tmp_path, ["done", "crash", "die", "error", "done"])
    assert launched(jobs, jobs=2) == (0, ["done", "failed", "failed", "failed", "done"])
    errors = [read_record(job.folder).error for job in jobs]
    assert errors[0] == errors[4] == ""
    assert errors[1].startswith("its process ended with exit code 3; last line of its log: no memory left; see ")
    assert errors[2].startswith("its process was ended by signal 9, SIGKILL (often a lack of memory); see ")
    assert errors[3] == "a mistake"
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "[1 of 5] job 0: act=done"
    assert sum(line.startswith(("job 0: done", "job 4: done")) for line in out) == 2
    assert any(line.startswith("job 3: failed after 0 s: a mistake (") for line in out)
    assert out[-1].endswith("(2 done, 3 failed)")


@pytest.mark.slow
def test_failed_jobs_are_repeated_as_often_as_set_but_user_errors_are_not(tmp_path):
    jobs = jobs_in(tmp_path, ["once", "crash", "error"])
    assert launched(jobs, jobs=3, retries=2) == (0, ["done", "failed", "failed"])
    assert [read_record(job.folder).attempts for job in jobs] == [2, 3, 1]


def test_each_job_has_a_gpu_and_a_share_of_the_cores(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "usable_cores", lambda: 9)
    jobs = jobs_in(tmp_path, ["done"] * 4)
    assert launched(jobs, gpus=["5", "GPU-b"])[1] == ["done"] * 4
    first = [seen(job)[0] for job in jobs]
    assert {first[0]["CUDA_VISIBLE_DEVICES"], first[1]["CUDA_VISIBLE_DEVICES"]} == {"5", "GPU-b"}
    assert {each["CUDA_VISIBLE_DEVICES"] for each in first} == {"5", "GPU-b"}
    assert {each["OMP_NUM_THREADS"] for each in first} == {"4"}
    assert {each["LLM2SLM_SWEEP_DIR"] for each in first} == {str(tmp_path)}
    assert {each["LLM2SLM_SWEEP_VARIED"] for each in first} == {"act"}
    assert len({each["pid"] for each in first}) == 4


def test_free_gpus_limit_the_jobs_and_are_shared_if_there_are_fewer(tmp_path):
    jobs = jobs_in(tmp_path, ["done"] * 5, devices=2)
    launcher = LocalLauncher(LocalSettings(), jobs, ["0", "1", "2", "3", "4"])
    assert launcher.free([], jobs) == 2  # one remaining GPU is not enough for a third job
    assert LocalLauncher(LocalSettings(), jobs_in(tmp_path, ["done"] * 5), []).free([], jobs) == 1
    shared = LocalLauncher(LocalSettings(jobs=5), jobs_in(tmp_path, ["done"] * 5), ["0", "1"])
    picked = []
    for job in jobs_in(tmp_path, ["done"] * 5):
        [gpu] = shared._least_used(job)
        shared.loads[gpu] += 1
        picked.append(gpu)
    assert picked == ["0", "1", "0", "1", "0"]
    with pytest.raises(UserError, match=r"^job 0 has trainer.devices=2, but this machine has 1 GPUs; "):
        LocalLauncher(LocalSettings(), jobs, ["0"])
    with pytest.raises(UserError, match=r"trainer.num_nodes=2; a job runs on this machine alone"):
        LocalLauncher(LocalSettings(), jobs_in(tmp_path, ["done"], nodes=2), [])
    on_cpu = jobs_in(tmp_path, ["done"], devices=3, on_gpu=False)
    assert LocalLauncher(LocalSettings(jobs=2), on_cpu, ["0"]).gpus == []


def when(condition, action):
    """Calls `action` in a thread as soon as `condition` is true."""

    def wait():
        while not condition():
            time.sleep(0.02)
        action()

    threading.Thread(target=wait, daemon=True).start()


@pytest.mark.parametrize("number", representatives([signal.SIGTERM, signal.SIGINT], [signal.SIGTERM]))
def test_a_signal_stops_all_jobs_which_save_and_the_next_command_completes_them(tmp_path, number):
    jobs = jobs_in(tmp_path, ["long", "long", "done"])
    started = [job.folder / "seen.jsonl" for job in jobs[:2]]
    when(lambda: all(path.exists() for path in started), lambda: os.kill(os.getpid(), number))
    before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    assert launched(jobs, jobs=2) == (number, ["interrupted", "interrupted", "pending"])
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == before
    assert all((job.folder / "saved").exists() for job in jobs[:2])
    assert launched(jobs, jobs=2) == (0, ["done", "done", "done"])


@pytest.mark.slow
def test_the_first_failure_stops_the_sweep_if_set(tmp_path, capsys):
    jobs = jobs_in(tmp_path, ["long", "crash", "done"])
    assert launched(jobs, jobs=2, on_failure="stop") == (0, ["interrupted", "failed", "pending"])
    assert (jobs[0].folder / "saved").exists()
    assert "job 1 failed and hydra.launcher.on_failure=stop: the other jobs save and stop" in capsys.readouterr().out


PARENT = """
import sys
sys.path[:0] = [{here!r}, {tests!r}]
from pathlib import Path
from llm2slm.sweeps import local
local.MODULE = "fake_job"
from test_launching import jobs_in, launched
launched(jobs_in(Path({folder!r}), ["long", "long"]), jobs=2)
"""


@pytest.mark.slow
def test_jobs_save_and_stop_when_the_command_is_killed(tmp_path):
    """SIGKILL to the command: its jobs detect the end of their standard input."""
    code = PARENT.format(here=str(HERE), tests=str(ROOT / "tests"), folder=str(tmp_path))
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    folders = [tmp_path / "0", tmp_path / "1"]
    while not all((folder / "seen.jsonl").exists() for folder in folders):
        assert parent.poll() is None
        time.sleep(0.02)
    parent.kill()
    parent.wait()
    while not all((folder / "saved").exists() for folder in folders):
        time.sleep(0.02)
    jobs = jobs_in(tmp_path, ["long", "long"])
    while any(read_record(folder).status == "running" for folder in folders):
        time.sleep(0.02)
    assert [read_record(folder).status for folder in folders] == ["interrupted", "interrupted"]
    assert launched(jobs, jobs=2) == (0, ["done", "done"])


def test_progress_is_printed_as_lines_without_a_terminal(tmp_path, capsys):
    """At most one line per minute for a running job; on a terminal a bar."""
    clock = [0.0]
    job = Job(3, tmp_path / "3", ["seed=1"], ["train"], steps=40)
    job.folder.mkdir()
    (job.folder / "metrics.csv").write_text("step,train/tokens_per_s,val/loss\n9,1234.5,\n19,,2.5\n")
    reporter = Reporter(8, terminal=False, clock=lambda: clock[0])
    with reporter:
        reporter.started(job)
        for second in range(0, 130, 10):
            clock[0] = float(second)
            reporter.update([job])
        reporter.ended(job, JobRecord([], "done", seconds=130.0, value=2.25))
    line = "job 3: step 20 of 40, val/loss 2.5, 1,234 tokens/s"
    assert capsys.readouterr().out.splitlines() == [
        "[4 of 8] job 3: seed=1", line, line, "job 3: done after 130 s, validation score 2.25 (1 done, 7 left)"
    ]  # fmt: skip
