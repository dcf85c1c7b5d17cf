"""`hydra/launcher=slurm`: job arrays through submitit.

Each array element runs `Runner`, which starts the process of the job and waits for it. Before its time limit, or when
it is preempted, Slurm sends a signal; submitit then calls `Runner.checkpoint`: the job saves its state and stops, the
element is requeued, and the job resumes.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import submitit

from llm2slm.atomic import write_text
from llm2slm.child_processes import GRACE
from llm2slm.sweeps.jobs import Job, JobRecord, runs_now
from llm2slm.sweeps.local import JobProcess
from llm2slm.sweeps.running import Running
from llm2slm.sweeps.settings import SlurmSettings
from llm2slm.types import UserError

FOLDER = "submitit"
"""Folder of submitit's files and logs in that of the sweep."""
QUEUED = "queued.txt"
"""File in the folder of a job with its id in the queue of Slurm."""
CHECKED = 15.0
"""Seconds between two queries of Slurm."""


class Runner(submitit.helpers.Checkpointable):
    """The function that an array element runs: the process of one job.

    Args:
        grace: seconds that the job has to save its state after a request to stop.
    """

    def __init__(self, job: Job, grace: float = GRACE) -> None:
        self.job, self.grace = job, grace
        self.process: JobProcess | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"process": None}

    def __call__(self) -> int:
        """Runs the job; returns the exit code of its process."""
        for number in (signal.SIGTERM, signal.SIGINT):  # of `scancel`, and of submitit's local executor
            signal.signal(number, lambda *_: self.stop())
        self.process = JobProcess(self.job)
        while not self.process.ended():
            time.sleep(0.1)
        return int(self.process.process.returncode)

    def stop(self) -> None:
        """Requests that the job saves its state and stops; kills it after the grace period."""
        if self.process is None:
            return
        self.process.interrupt()
        deadline = time.monotonic() + self.grace
        while not self.process.ended() and time.monotonic() < deadline:
            time.sleep(0.05)
        self.process.kill()

    def checkpoint(self) -> Any:
        """Called by submitit on preemption and before the time limit: stops the job, and requeues this function."""
        self.stop()
        return super().checkpoint()


class QueuedJob:
    """A job in the queue of Slurm, or of submitit's local executor."""

    def __init__(self, job: Job, queued: Any) -> None:
        self.job, self.queued = job, queued
        self._requests = 0
        self._checked, self._done = 0.0, False

    def ended(self) -> bool:
        """Whether the array element has ended for good (a requeued one has not)."""
        if not self._done and time.monotonic() - self._checked > (CHECKED if self._on_slurm() else 0.0):
            self._checked = time.monotonic()
            self._done = bool(self.queued.done(force_check=self._on_slurm())) and not runs_now(self.job.folder)
        return self._done

    def code(self) -> int | None:
        """The exit code of the job's process; None: the array element ended before it."""
        if self._requests:
            return -signal.SIGTERM
        try:
            return int(self.queued.results()[0])
        except (submitit.core.utils.UncompletedJobError, submitit.core.utils.FailedJobError):
            return None

    def interrupt(self) -> None:
        """Cancels the array element, whose `Runner` stops the job."""
        self._requests += 1
        if self._requests > 1:
            self.kill()
        else:
            self.queued.cancel(check=False)

    def kill(self) -> None:
        """Cancels without saving."""
        if self._on_slurm():
            subprocess.call(["scancel", "--full", "--signal=KILL", str(self.queued.job_id)])
        elif self.queued._process is not None:
            self.queued._process.kill()

    def _on_slurm(self) -> bool:
        return isinstance(self.queued, submitit.SlurmJob)


class SlurmLauncher:
    """Submits jobs of equal resources as one array."""

    def __init__(self, settings: SlurmSettings, folder: Path) -> None:
        if settings.executor not in ("slurm", "local"):
            raise UserError(f"hydra.launcher.executor={settings.executor}: expected slurm or local")
        self.settings, self.folder = settings, folder / FOLDER

    def free(self, running: Sequence[Running], waiting: Sequence[Job]) -> int:
        """`jobs` less those that run; without `jobs`, all that wait."""
        return len(waiting) if self.settings.jobs is None else max(0, self.settings.jobs - len(running))

    def start(self, jobs: Sequence[Job]) -> list[Running]:
        """Submits the jobs, one array for each set of resources.

        Raises:
            UserError: sbatch is missing or refuses the jobs.
        """
        arrays: dict[tuple[Any, ...], list[Job]] = {}
        for job in jobs:
            arrays.setdefault((job.devices, job.nodes, job.on_gpu), []).append(job)
        found: list[Running] = []
        for array in arrays.values():
            runners = [Runner(job, self.settings.signal_delay_s * 0.8) for job in array]
            try:
                submitted = self._submit(runners, array[0])
            except (RuntimeError, OSError, submitit.core.utils.FailedJobError, subprocess.CalledProcessError) as error:
                reason = " ".join(str(error).split())[:300]
                raise UserError(f"hydra/launcher=slurm: the jobs were not submitted ({reason})") from None
            for job, queued in zip(array, submitted, strict=True):
                write_text(job.folder / QUEUED, str(queued.job_id))
                found.append(QueuedJob(job, queued))
        return found

    def attach(self, job: Job, record: JobRecord) -> Running | None:
        """The job as an element of an array that an earlier command submitted, if it has not ended."""
        path = job.folder / QUEUED
        if record.complete or not path.is_file() or self.settings.executor != "slurm":
            return None
        queued = QueuedJob(job, submitit.SlurmJob(self.folder, path.read_text("utf-8").strip()))
        return None if queued.ended() else queued

    def close(self) -> None:
        """Holds nothing: the jobs are those of Slurm."""

    def _submit(self, runners: Sequence[Runner], job: Job) -> list[Any]:
        executor = self._executor(job)
        with executor.batch():
            return [executor.submit(runner) for runner in runners]

    def _executor(self, job: Job) -> Any:
        settings = self.settings
        if settings.executor == "local":
            local = submitit.LocalExecutor(self.folder, max_num_timeout=settings.requeues)
            local.update_parameters(timeout_min=settings.timeout_min, signal_delay_s=settings.signal_delay_s)
            if settings.setup:
                local.update_parameters(setup=settings.setup)
            return local
        executor = submitit.SlurmExecutor(self.folder, max_num_timeout=settings.requeues, python=sys.executable)
        executor.update_parameters(**slurm_parameters(settings, job))
        return executor


def slurm_parameters(settings: SlurmSettings, job: Job) -> dict[str, Any]:
    """Parameters of `submitit.SlurmExecutor` for an array of jobs like this one: a process for each device."""
    gpus = settings.gpus if settings.gpus is not None else (job.devices if job.on_gpu else 0)
    named = ("partition", "account", "qos", "constraint")
    found: dict[str, Any] = {name: value for name in named if (value := getattr(settings, name)) is not None}
    found |= {
        "job_name": job.folder.parent.name,
        "time": settings.timeout_min,
        "signal_delay_s": settings.signal_delay_s,
        "nodes": job.nodes,
        "ntasks_per_node": job.devices,
        "cpus_per_task": settings.cpus_per_task,
        "stderr_to_stdout": True,
    }
    if gpus:
        found["gpus_per_node"] = gpus
    if settings.mem_gb is not None:
        found["mem"] = f"{settings.mem_gb:g}G"
    if settings.setup:
        found["setup"] = list(settings.setup)
    if settings.jobs is not None:
        found["array_parallelism"] = settings.jobs
    if settings.parameters:
        found["additional_parameters"] = dict(settings.parameters)
    return found
