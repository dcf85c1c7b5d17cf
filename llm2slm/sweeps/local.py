"""`hydra/launcher=local`: each job is a process on this machine, with GPUs and a share of the processor cores."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from llm2slm.atomic import writing
from llm2slm.child_processes import Child, environment
from llm2slm.runs import usable_cores
from llm2slm.sweeps.jobs import LOG, Job, JobRecord
from llm2slm.sweeps.running import Running
from llm2slm.sweeps.settings import LauncherSettings
from llm2slm.types import UserError

MODULE = "llm2slm.cli.job"
"""The module that runs one job; its arguments are those of the command line."""


class JobProcess(Child):
    """The process of a job; everything that it prints is appended to `job.log` in its folder."""

    def __init__(self, job: Job, threads: int | None = None, gpus: Sequence[str] | None = None) -> None:
        self.job, self.gpus, self.requested = job, list(gpus or ()), False
        own = job.environment()
        if gpus:
            own["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        if threads is not None and "RAYON_NUM_THREADS" not in os.environ:
            own["RAYON_NUM_THREADS"] = str(threads)
        with writing(job.folder / LOG), (job.folder / LOG).open("ab") as log:
            super().__init__(["-m", MODULE, *job.command()], environment(threads, **own), log, subprocess.STDOUT)

    def code(self) -> int | None:
        """The exit code of the process."""
        return self.process.returncode

    def ended(self) -> bool:
        """Whether the process has ended; processes that it left behind (data loaders, other ranks) are killed."""
        if not super().ended():
            return False
        self.kill()
        return True

    def interrupt(self, number: int = signal.SIGTERM) -> None:
        """Requests that it saves its state and stops."""
        super().interrupt(number)


class LocalLauncher:
    """Starts jobs on this machine.

    A job gets `job.devices` unused GPUs while there are some; with `jobs=N` above their number, jobs share the
    GPUs that have the fewest jobs. Without GPUs, one job runs at a time, or N.
    """

    def __init__(self, settings: LauncherSettings, jobs: Sequence[Job], gpus: Sequence[str] | None = None) -> None:
        if several := next((job for job in jobs if job.nodes > 1), None):
            raise UserError(
                f"hydra/launcher=local: {several.name} has trainer.num_nodes={several.nodes}; a job runs on this "
                "machine alone: set trainer.num_nodes=1, or hydra/launcher=slurm"
            )
        if settings.jobs is not None and settings.jobs < 1:
            raise UserError(f"hydra.launcher.jobs={settings.jobs}: must be at least 1, or null")
        wanted = any(job.on_gpu for job in jobs)
        self.gpus = list(visible_gpus() if gpus is None else gpus) if wanted else []
        if self.gpus and (large := next((j for j in jobs if j.on_gpu and j.devices > len(self.gpus)), None)):
            raise UserError(
                f"{large.name} has trainer.devices={large.devices}, but this machine has {len(self.gpus)} GPUs; "
                "set trainer.devices to at most this number"
            )
        self.jobs = settings.jobs
        self.loads = dict.fromkeys(self.gpus, 0)
        self.started: list[JobProcess] = []

    def free(self, running: Sequence[Running], waiting: Sequence[Job]) -> int:
        """How many of the waiting jobs can start now."""
        self._count(running)
        if self.jobs is not None:
            return max(0, self.jobs - len(running))
        if not self.gpus:
            return max(0, 1 - len(running))
        unused, number = sum(load == 0 for load in self.loads.values()), 0
        for job in waiting:
            unused -= job.devices if job.on_gpu else 1
            if unused < 0:
                break
            number += 1
        return number

    def start(self, jobs: Sequence[Job]) -> list[Running]:
        """Starts jobs on the GPUs with the fewest jobs."""
        found: list[Running] = []
        for job in jobs:
            gpus = self._least_used(job) if self.gpus and job.on_gpu else []
            for gpu in gpus:
                self.loads[gpu] += 1
            process = JobProcess(job, self.threads(job), gpus or None)
            self.started.append(process)
            found.append(process)
        return found

    def attach(self, job: Job, record: JobRecord) -> Running | None:
        """None: processes end with the command that started them."""
        del job, record
        return None

    def close(self) -> None:
        """Holds nothing."""

    def threads(self, job: Job) -> int | None:
        """Threads of each process of a job: an equal share of the cores; None: OMP_NUM_THREADS is set already."""
        if "OMP_NUM_THREADS" in os.environ:
            return None
        at_once = self.jobs or max(1, len(self.gpus) // max(1, job.devices))
        return max(1, usable_cores() // (at_once * max(1, job.devices)))

    def _least_used(self, job: Job) -> list[str]:
        return sorted(self.gpus, key=lambda gpu: (self.loads[gpu], self.gpus.index(gpu)))[: job.devices]

    def _count(self, running: Sequence[Running]) -> None:
        alive = {id(each) for each in running}
        self.started = [each for each in self.started if id(each) in alive]
        self.loads = dict.fromkeys(self.gpus, 0)
        for each in self.started:
            for gpu in each.gpus:
                self.loads[gpu] += 1


def visible_gpus() -> list[str]:
    """The GPUs of this machine as entries of CUDA_VISIBLE_DEVICES: those of the variable if it is set."""
    drivers = (Path("/dev/nvidiactl"), Path("/dev/kfd"))
    if shutil.which("nvidia-smi") is None and not any(path.exists() for path in drivers):
        return []  # without loading torch
    import torch

    count = int(torch.cuda.device_count())
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [str(number) for number in range(count)] if given is None else [n.strip() for n in given.split(",")]
    return names[:count]
