"""`hydra/launcher=ray` on a local Ray. The jobs are `fake_job.py`."""

from __future__ import annotations

import os
import signal

import pytest
from test_launching import HERE, fake, jobs_in, when  # noqa: F401  a fixture
from test_slurm import module  # noqa: F401  a fixture

from llm2slm.sweeps.jobs import read_record
from llm2slm.sweeps.progress import Reporter
from llm2slm.sweeps.run import Grid, Supervisor
from llm2slm.sweeps.settings import RaySettings


@pytest.mark.slow
def test_jobs_run_as_tasks_and_save_on_a_signal(tmp_path, module, capsys):  # noqa: F811
    from llm2slm.sweeps.ray_tasks import RayLauncher

    settings = RaySettings(cpus=1, jobs=2)
    jobs = jobs_in(tmp_path, ["done", "crash", "long"])
    when((jobs[2].folder / "seen.jsonl").exists, lambda: os.kill(os.getpid(), signal.SIGTERM))
    launcher = RayLauncher(settings, jobs)
    assert launcher.free([], jobs) == min(2, int(launcher.total["CPU"]))
    stopped = Supervisor(Grid(jobs), launcher, settings, Reporter(3, terminal=False)).run()
    records = [read_record(job.folder) for job in jobs]
    assert (stopped, [r.status for r in records]) == (signal.SIGTERM, ["done", "failed", "interrupted"])
    assert records[1].error.startswith("its process ended with exit code 3; ")
    assert (jobs[2].folder / "saved").exists()
