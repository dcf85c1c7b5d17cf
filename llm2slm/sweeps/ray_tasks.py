"""`hydra/launcher=ray`: each job is a Ray task, which starts the process of the job and waits for it."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Sequence
from typing import Any

import ray

from llm2slm.child_processes import GRACE
from llm2slm.sweeps.jobs import Job, JobRecord
from llm2slm.sweeps.local import JobProcess
from llm2slm.sweeps.running import Running
from llm2slm.sweeps.settings import RaySettings
from llm2slm.types import UserError


def run_job(job: Job, threads: int | None) -> int:
    """Runs the process of a job; returns its exit code. A cancelled task stops the job, which saves its state."""
    process = JobProcess(job, threads)
    try:
        while not process.ended():
            time.sleep(0.1)
    finally:  # Ray cancels by a KeyboardInterrupt
        process.interrupt()
        deadline = time.monotonic() + GRACE
        while not process.ended() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.kill()
    return int(process.process.returncode)


class RayJob:
    """A job that Ray runs, or will run."""

    def __init__(self, job: Job, task: Any) -> None:
        self.job, self.task = job, task
        self._requests = 0

    def ended(self) -> bool:
        """Whether the task has ended."""
        ready, _ = ray.wait([self.task], timeout=0)
        return bool(ready)

    def code(self) -> int | None:
        """The exit code of the job's process; None: the task ended before it."""
        try:
            return int(ray.get(self.task))
        except (ray.exceptions.TaskCancelledError, KeyboardInterrupt):
            return -signal.SIGTERM
        except ray.exceptions.RayError:
            return -signal.SIGTERM if self._requests else None

    def interrupt(self) -> None:
        """Cancels the task, which stops the job."""
        self._requests += 1
        ray.cancel(self.task, force=self._requests > 1)

    def kill(self) -> None:
        """Ends the task; its job stops with it."""
        self._requests += 1
        ray.cancel(self.task, force=True)


class RayLauncher:
    """Submits jobs to Ray, which starts as many as its resources allow."""

    def __init__(self, settings: RaySettings, jobs: Sequence[Job]) -> None:
        if several := next((job for job in jobs if job.nodes > 1), None):
            raise UserError(
                f"hydra/launcher=ray: {several.name} has trainer.num_nodes={several.nodes}; a Ray task runs on one "
                "node: set trainer.num_nodes=1, or hydra/launcher=slurm"
            )
        self.settings = settings
        self.started_here = not ray.is_initialized()
        if self.started_here:
            try:
                ray.init(
                    address=settings.address, log_to_driver=False, include_dashboard=False, logging_level=logging.ERROR
                )
            except (ConnectionError, ValueError, RuntimeError) as error:
                reason = " ".join(str(error).split())[:300]
                raise UserError(f"hydra.launcher.address={settings.address}: Ray did not start ({reason})") from None
        self.total: dict[str, float] = ray.cluster_resources()

    def free(self, running: Sequence[Running], waiting: Sequence[Job]) -> int:
        """As many jobs as fit into the resources of the cluster, at most `jobs`."""
        fitting, number = {name: self.total.get(name, 0.0) for name in ("CPU", "GPU")}, 0
        for job in [each.job for each in running] + list(waiting):
            for name, amount in zip(("CPU", "GPU"), self.needs(job), strict=True):
                fitting[name] -= amount
            if min(fitting.values()) < -1e-9 or (self.settings.jobs is not None and number >= self.settings.jobs):
                break
            number += 1
        if number == 0 and waiting:
            cpus, gpus = self.needs(waiting[0])
            raise UserError(
                f"hydra/launcher=ray: {waiting[0].name} needs {cpus:g} cores and {gpus:g} GPUs; the cluster has "
                f"{self.total.get('CPU', 0):g} and {self.total.get('GPU', 0):g}"
            )
        return max(0, number - len(running))

    def needs(self, job: Job) -> tuple[float, float]:
        """Cores and GPUs of a job."""
        has_gpus = self.total.get("GPU", 0) > 0
        gpus = self.settings.gpus
        if gpus is None:
            gpus = float(job.devices) if job.on_gpu and has_gpus else 0.0
        if self.settings.cpus is not None:
            return self.settings.cpus, gpus
        cores = self.total.get("CPU", 1.0)
        at_once = self.settings.jobs or (max(1, int(self.total["GPU"] // gpus)) if gpus else 1)
        return max(1.0, cores // at_once), gpus

    def start(self, jobs: Sequence[Job]) -> list[Running]:
        """Submits jobs."""
        found: list[Running] = []
        for job in jobs:
            cpus, gpus = self.needs(job)
            remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)(run_job)
            found.append(RayJob(job, remote.remote(job, max(1, int(cpus) // max(1, job.devices)))))
        return found

    def attach(self, job: Job, record: JobRecord) -> Running | None:
        """None: tasks end with the command that submitted them."""
        del job, record
        return None

    def close(self) -> None:
        """Disconnects from Ray, if this launcher connected to it."""
        if self.started_here:
            ray.shutdown()
