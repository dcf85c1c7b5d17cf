"""The progress bar of long jobs, on the error stream."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Task as Job
from rich.text import Text


class Rate(ProgressColumn):
    """Steps per second. unit: what a step is, for example "rows"."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Job) -> Text:
        return Text(f"{task.speed or 0:,.0f} {self._unit}/s")


def progress_bar(shown: bool, *columns: ProgressColumn, transient: bool = False) -> Progress:
    """A bar with description, `columns` and remaining time.

    Args:
        columns: by default the number of steps and the job's field `speed`.
        transient: remove the bar at the end.
    """
    columns = columns or (MofNCompleteColumn(), TextColumn("{task.fields[speed]}"))
    named = (TextColumn("{task.description}"), BarColumn(), *columns, TimeRemainingColumn())
    return Progress(*named, console=Console(stderr=True), disable=not shown, transient=transient)
