"""Runs the jobs of a sweep by a launcher: starts, watches, stops and repeats them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from llm2slm.child_processes import GRACE, POLL, stop_requests
from llm2slm.sweeps.jobs import Job, JobRecord
from llm2slm.sweeps.progress import Reporter
from llm2slm.sweeps.running import Launcher, Running, outcome
from llm2slm.sweeps.settings import LauncherSettings

USER_ERROR = 2
"""Exit code of a job that would fail again in the same way."""


class Source(Protocol):
    """The jobs of a sweep in their order: a list, or the trials of a study."""

    def resumed(self) -> Sequence[Job]:
        """The jobs in the folder of the sweep that are not complete."""
        ...

    def waiting(self, most: int) -> Sequence[Job]:
        """The next jobs, at most so many, without taking them."""
        ...

    def take(self, number: int) -> list[Job]:
        """Takes the next jobs."""
        ...

    def again(self, job: Job) -> None:
        """Puts a job back, as the next one."""
        ...

    def attached(self, job: Job) -> None:
        """A job runs already; it is not taken."""
        ...

    def prunes(self, job: Job) -> bool:
        """Whether a running job is to be stopped, because its validation scores are poor."""
        ...

    def ended(self, job: Job, record: JobRecord) -> None:
        """Reports the outcome of a job that is not repeated."""
        ...


class Grid:
    """A list of jobs."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.jobs = list(jobs)

    def resumed(self) -> Sequence[Job]:
        """All jobs of the list."""
        return list(self.jobs)

    def waiting(self, most: int) -> Sequence[Job]:
        """The next jobs."""
        return self.jobs[:most]

    def take(self, number: int) -> list[Job]:
        """Takes the next jobs."""
        taken, self.jobs = self.jobs[:number], self.jobs[number:]
        return taken

    def again(self, job: Job) -> None:
        """Puts a job back, as the next one."""
        self.jobs.insert(0, job)

    def attached(self, job: Job) -> None:
        """Removes a job that runs already."""
        self.jobs.remove(job)

    def prunes(self, job: Job) -> bool:
        """Nothing is pruned."""
        del job
        return False

    def ended(self, job: Job, record: JobRecord) -> None:
        """Nothing depends on the outcome."""


class Supervisor:
    """Runs the jobs of a source until all have ended, a signal arrived, or a failure stops the sweep.

    Args:
        attached: jobs that an earlier command started and that still run.
        clock: seconds, as of `time.monotonic`.
    """

    def __init__(
        self,
        source: Source,
        launcher: Launcher,
        settings: LauncherSettings,
        reporter: Reporter,
        *,
        attached: Sequence[Running] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.source, self.launcher, self.settings, self.reporter = source, launcher, settings, reporter
        self.running: list[Running] = list(attached)
        self.clock = clock
        self.pruned: set[int] = set()
        self.tries: dict[int, int] = {}
        self.stopping = False
        self._deadline: float | None = None

    def run(self) -> int:
        """Runs the jobs. Returns the number of the signal that stopped the sweep; 0: none."""
        passed = 0
        with stop_requests() as arrived, self.reporter:
            try:
                while self._step(arrived):
                    time.sleep(POLL)
                    if len(arrived) > passed:
                        passed = len(arrived)
                        self._pass_on(passed)
            finally:
                self._end_all()
                self.launcher.close()
        return arrived[0] if arrived else 0

    def _step(self, arrived: Sequence[int]) -> bool:
        """Settles ended jobs and starts others. Whether jobs are running."""
        for each in list(self.running):
            if each.ended():
                self.running.remove(each)
                self._settle(each, bool(arrived))
            elif not self.stopping and each.job.number not in self.pruned and self.source.prunes(each.job):
                self.pruned.add(each.job.number)
                each.interrupt()
        if not arrived and not self.stopping:
            self._start()
        self.reporter.update([each.job for each in self.running])
        if self._deadline is not None and self.clock() > self._deadline:
            for each in self.running:
                each.kill()
        return bool(self.running)

    def _start(self) -> None:
        """Starts jobs until no further one fits, or none is waiting."""
        while waiting := self.source.waiting(MOST):
            number = min(self.launcher.free(self.running, waiting), len(waiting))
            if number < 1:
                return
            jobs = self.source.take(number)
            for job in jobs:
                self.tries[job.number] = self.tries.get(job.number, 0) + 1
                self.reporter.started(job)
            self.running += self.launcher.start(jobs)

    def _settle(self, each: Running, stopped: bool) -> None:
        """Records the outcome of an ended job, and repeats it or reports it."""
        job = each.job
        record = outcome(each, pruned=job.number in self.pruned)
        lasting = each.code() == USER_ERROR
        repeatable = (
            not (stopped or self.stopping or lasting) and self.tries.get(job.number, 1) <= self.settings.retries
        )
        if record.status == "failed" and repeatable:
            self.reporter.repeated(job, record)
            self.source.again(job)
            return
        self.source.ended(job, record)
        self.reporter.ended(job, record)
        if record.status == "failed" and self.settings.on_failure == "stop" and not self.stopping:
            self.stopping = True
            self.reporter.line(f"{job.name} failed and hydra.launcher.on_failure=stop: the other jobs save and stop")
            self._request()

    def _request(self) -> None:
        """Requests that all running jobs save their state and stop; `_step` kills those that do not within GRACE."""
        for each in self.running:
            each.interrupt()
        self._deadline = self.clock() + GRACE

    def _pass_on(self, count: int) -> None:
        """Passes a signal on: the first requests a stop, the second stops at once, the third kills."""
        if count == 1:
            self.reporter.line(f"stopping: {len(self.running)} jobs save their state (once more: they stop at once)")
            self._request()
        elif count == 2:
            for each in self.running:
                each.interrupt()
        else:
            for each in self.running:
                each.kill()

    def _end_all(self) -> None:
        """After an error of this process: stops the jobs."""
        for each in self.running:
            each.interrupt()
        deadline = time.monotonic() + GRACE
        for each in self.running:
            while not each.ended() and time.monotonic() < deadline:
                time.sleep(POLL)
            if not each.ended():
                each.kill()
            outcome(each)


MOST = 1_000_000
"""More jobs than any sweep has."""
