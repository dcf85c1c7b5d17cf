"""Progress on the error stream: bars on a terminal; plain lines at a steady pace elsewhere (log files, schedulers)."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

INTERVAL = 30.0
"""Seconds between two plain lines about the same job."""

SLOW = 10
"""Rates below have a decimal place."""


class Pace:
    """The pace of plain lines: at most one every `INTERVAL` seconds, the first one after the first interval."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._last = clock, clock()

    def due(self) -> bool:
        """Whether a line is due; if so, the next interval starts."""
        now = self._clock()
        if now - self._last < INTERVAL:
            return False
        self._last = now
        return True


class PlainProgress(Progress):
    """The interface of rich's Progress, with plain lines instead of bars.

    A job prints a line every `INTERVAL` seconds, and a last line when it ends. A transient job that ends within the
    first interval prints nothing.
    """

    def __init__(self, *columns: ProgressColumn, console: Console, transient: bool = False) -> None:
        super().__init__(*columns, console=console, disable=True)
        self._transient = transient
        self._paces: dict[TaskID, Pace] = {}
        self._printed: dict[TaskID, str] = {}

    def add_task(self, *args: Any, **kwargs: Any) -> TaskID:
        """Adds a job."""
        added = super().add_task(*args, **kwargs)
        self._paces[added] = Pace()
        return added

    def update(self, task_id: TaskID, **kwargs: Any) -> None:
        """Updates a job, and prints its line if one is due."""
        super().update(task_id, **kwargs)
        self._print_if_due(task_id)

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """Advances a job, and prints its line if one is due."""
        super().advance(task_id, advance)
        self._print_if_due(task_id)

    def stop(self) -> None:
        """Prints the last line of each job."""
        for task in self.tasks:
            if task.completed and (not self._transient or task.id in self._printed):
                self._print(task)
        super().stop()

    def _print_if_due(self, task_id: TaskID) -> None:
        if self._paces[task_id].due():
            self._print(self._tasks[task_id])

    def _print(self, task: Task) -> None:
        rendered = (column(task) for column in self.columns if isinstance(column, ProgressColumn))
        parts = [part.plain for part in rendered if isinstance(part, Text) and part.plain]
        left = "" if task.finished or task.time_remaining is None else f", {parts[-1]} left"
        line = f"{parts[0]}: {', '.join(parts[1:-1])}{left}"
        if line != self._printed.get(task.id):
            self._printed[task.id] = line
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)


def progress_bar(
    shown: bool,
    *columns: ProgressColumn,
    transient: bool = False,
    auto_refresh: bool = True,
    console: Console | None = None,
) -> Progress:
    """A bar with description, `columns` (amount done, rate) and remaining time; plain lines without a terminal.

    Args:
        shown: False: nothing is printed.
        columns: by default the number of steps and the job's field `speed`.
        transient: remove the bar at the end.
        auto_refresh: redraw in a thread (which takes processor time from timed code).
        console: None: the error stream.
    """
    columns = columns or (MofNCompleteColumn(), TextColumn("{task.fields[speed]}"))
    console = Console(stderr=True) if console is None else console
    name, left = TextColumn("{task.description}", markup=False), TimeRemainingColumn()
    if shown and not console.is_terminal:
        return PlainProgress(name, *columns, left, console=console, transient=transient)
    bars = (name, BarColumn(), *columns, left)
    return Progress(*bars, console=console, disable=not shown, transient=transient, auto_refresh=auto_refresh)


def print_line(text: str) -> None:
    """Prints a plain line to the error stream at once."""
    print(text, file=sys.stderr, flush=True)


class Rate(ProgressColumn):
    """Units per second; the mean until there are two updates, from which the recent rate is computed.

    A job whose first units were done by an earlier process has their number in its field `before`.
    """

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        """The task's speed, as "1,234 tokens/s"; empty before the first."""
        speed = task.speed
        if speed is None and task.elapsed:
            speed = (task.completed - task.fields.get("before", 0)) / task.elapsed
        return Text(f"{speed:,.{0 if speed >= SLOW else 1}f} {self.unit}/s" if speed else "")
