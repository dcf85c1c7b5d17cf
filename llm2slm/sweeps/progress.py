"""The progress of a sweep: on a terminal one line per running job that is redrawn, otherwise plain lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from types import TracebackType

from rich.progress import TaskID

from llm2slm.progress import progress_bar
from llm2slm.runs import METRICS, curve
from llm2slm.shown_text import on_one_line
from llm2slm.sweeps.jobs import LOG, Job, JobRecord

STEADY = 60.0
"""Seconds between two plain lines about a running job."""
REDRAWN = 1.0
"""Seconds between two readings of the files of a running job on a terminal."""


class Reporter:
    """Prints what happens to the jobs; a context within which the lines on a terminal are redrawn.

    Args:
        total: number of jobs of the sweep. complete: of these, done before.
        terminal: whether to redraw lines; None: whether the error stream is a terminal.
    """

    def __init__(
        self,
        total: int,
        complete: int = 0,
        *,
        terminal: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total, self.counts, self.clock = total, {"done": complete}, clock
        self.terminal = sys.stderr.isatty() if terminal is None else terminal
        self.bar = progress_bar(self.terminal, transient=True)
        self.bars: dict[int, TaskID] = {}
        self.printed: dict[int, float] = {}
        self.began: dict[int, float] = {}
        self._drawn = 0.0

    def __enter__(self) -> Reporter:
        self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.bar.stop()

    def line(self, text: str) -> None:
        """Prints a line."""
        if self.terminal:
            self.bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, flush=True)

    def started(self, job: Job) -> None:
        """A job starts."""
        self.began[job.number] = self.printed[job.number] = self.clock()
        again = " (resumes)" if job.command() != job.arguments else ""
        self.line(f"[{job.number + 1} of {max(self.total, job.number + 1)}] {job.name}{again}: {shown(job)}")

    def repeated(self, job: Job, record: JobRecord) -> None:
        """A job failed, and will be repeated."""
        self._remove(job)
        self.line(f"{job.name}: failed ({on_one_line(record.error)}); it is repeated")

    def ended(self, job: Job, record: JobRecord) -> None:
        """A job has ended, and is not repeated."""
        self._remove(job)
        self.counts[record.status] = self.counts.get(record.status, 0) + 1
        counted = ", ".join(f"{count} {status}" for status, count in self.counts.items() if count)
        rest = self.total - sum(self.counts.values())
        left = f", {rest} left" if rest > 0 else ""
        reason = f": {on_one_line(record.error)}" if record.error else ""
        value = f", validation score {record.value:.4g}" if record.value is not None else ""
        seconds = f" after {record.seconds:,.0f} s" if record.seconds else ""
        self.line(f"{job.name}: {record.status}{seconds}{value}{reason} ({counted}{left})")

    def update(self, running: Sequence[Job]) -> None:
        """Shows the progress of the running jobs."""
        now = self.clock()
        if self.terminal:
            if now - self._drawn < REDRAWN:
                return
            self._drawn = now
            for job in running:
                if job.number not in self.bars:
                    self.bars[job.number] = self.bar.add_task(job.name, total=job.steps or None, speed="")
                step, text = state(job)
                self.bar.update(self.bars[job.number], completed=step, speed=text)
            return
        for job in running:
            if now - self.printed.get(job.number, now) >= STEADY:
                self.printed[job.number] = now
                step, text = state(job)
                steps = f"step {step:,} of {job.steps:,}, " if job.steps and step else ""
                self.line(f"{job.name}: {steps}{text or f'running for {now - self.began[job.number]:,.0f} s'}")
            self.printed.setdefault(job.number, now)
            self.began.setdefault(job.number, now)

    def _remove(self, job: Job) -> None:
        if (bar := self.bars.pop(job.number, None)) is not None:
            self.bar.remove_task(bar)


def shown(job: Job) -> str:
    """The overrides of a job on one line, without those of all jobs."""
    own = [each for each in job.overrides if each.lstrip("+").partition("=")[0] in job.varied] or job.overrides
    return " ".join(" ".join(own).split()) or "no overrides"


def state(job: Job) -> tuple[int, str]:
    """The number of optimizer steps so far, and the last validation loss and speed, from the files of a job."""
    rows = curve(job.folder / METRICS) if job.steps else {}
    if not rows:
        return 0, "starting" if not (job.folder / LOG).exists() or job.steps else "running"
    parts = []
    for key, write in (("val/loss", "val/loss {:.4g}"), ("train/tokens_per_s", "{:,.0f} tokens/s")):
        value = next((row[key] for row in reversed(rows.values()) if key in row), None)
        parts += [write.format(value)] if value is not None else []
    step = max(rows) + 1
    return step, "testing" if step >= job.steps else ", ".join(parts)
