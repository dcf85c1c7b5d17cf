"""What launchers have in common: the jobs that they started, and the outcome of each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from llm2slm.child_processes import INTERRUPTED, by_signal
from llm2slm.sweeps.jobs import LOG, Job, JobRecord


class Running(Protocol):
    """A job that a launcher has started."""

    job: Job

    def ended(self) -> bool:
        """Whether its process has ended."""
        ...

    def code(self) -> int | None:
        """The exit code of an ended process; None: unknown, the record has the outcome."""
        ...

    def interrupt(self) -> None:
        """Requests that it saves its state and stops; a second request stops it at once."""
        ...

    def kill(self) -> None:
        """Ends it without saving."""
        ...


class Launcher(Protocol):
    """Starts jobs in processes."""

    def free(self, running: Sequence[Running], waiting: Sequence[Job]) -> int:
        """How many of the waiting jobs, in their order, can start now."""
        ...

    def start(self, jobs: Sequence[Job]) -> list[Running]:
        """Starts jobs, each in its folder, which exists."""
        ...

    def attach(self, job: Job, record: JobRecord) -> Running | None:
        """The job that an earlier command started and that still runs or waits in a queue; None: there is none."""
        ...

    def close(self) -> None:
        """Releases what the launcher holds; called once, when no job runs."""
        ...


def outcome(running: Running, *, pruned: bool = False) -> JobRecord:
    """The record of a job whose process has ended; written if the process could not write it."""
    folder = running.job.folder
    record = running.job.record()
    if record.status in ("running", "pending"):
        code = running.code()
        record.attempts += record.status == "pending"  # it ended before it could record that it runs
        if code in INTERRUPTED:
            record.status = "interrupted"
        else:
            record.status = "failed"
            reason = by_signal(code) if code is not None and code < 0 else f"its process ended with exit code {code}"
            record.error = f"{reason}; {last_line(folder)}see {folder / LOG}"
        record.write(folder)
    if pruned and record.status == "interrupted":
        record.status = "pruned"
        record.write(folder)
    return record


def last_line(folder: Path) -> str:
    """The last line of a job's log, for the message of a process that left no other; "" without a log."""
    try:
        with (folder / LOG).open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 4096))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return next((f"last line of its log: {line.strip()[:200]}; " for line in reversed(lines) if line.strip()), "")
