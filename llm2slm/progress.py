"""Progress bars on the error stream."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text


def progress_bar(
    shown: bool,
    *columns: ProgressColumn,
    transient: bool = False,
    auto_refresh: bool = True,
    console: Console | None = None,
) -> Progress:
    """A bar with description, `columns` (amount done, rate) and remaining time.

    Args:
        shown: False: nothing is printed.
        columns: by default the number of steps and the job's field `speed`.
        transient: remove the bar at the end.
        auto_refresh: redraw in a thread (which takes processor time from timed code).
        console: None: the error stream.
    """
    columns = columns or (MofNCompleteColumn(), TextColumn("{task.fields[speed]}"))
    named = (TextColumn("{task.description}"), BarColumn(), *columns, TimeRemainingColumn())
    console = Console(stderr=True) if console is None else console
    return Progress(*named, console=console, disable=not shown, transient=transient, auto_refresh=auto_refresh)


class Rate(ProgressColumn):
    """Units per second."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        """The task's speed, as "1,234 tokens/s"."""
        return Text(f"{task.speed or 0:,.0f} {self.unit}/s")
