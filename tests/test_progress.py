"""Progress without a terminal: plain lines at a steady pace, by a fake clock."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.progress import MofNCompleteColumn

from llm2slm import progress
from llm2slm.progress import INTERVAL, Pace, Rate, progress_bar


class Clock:
    """Seconds that the test sets."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(progress.time, "monotonic", found)
    monkeypatch.setattr(Pace.__init__, "__defaults__", (found,))
    return found


def run(clock: Clock, seconds: float, steps: int, **options) -> list[str]:
    """The lines of a job of `steps` steps that take `seconds` each."""
    stream = io.StringIO()
    with progress_bar(True, MofNCompleteColumn(), Rate("rows"), console=Console(file=stream), **options) as bar:
        bar.get_time = clock
        job = bar.add_task("counting [x]", total=steps)
        for _ in range(steps):
            clock.now += seconds
            bar.advance(job)
    return stream.getvalue().splitlines()


def test_a_line_is_printed_each_interval_and_at_the_end(clock: Clock) -> None:
    lines = run(clock, 2.0, 50)
    every = int(INTERVAL / 2)
    assert [line.split(",")[0] for line in lines] == [
        *(f"counting [x]: {done}/50" for done in range(every, 51, every)),
        "counting [x]: 50/50",
    ]
    assert lines[0].endswith(" left") and not lines[-1].endswith("left")
    assert not any("\r" in line or "\x1b" in line for line in lines)


def test_short_jobs_print_a_single_line_or_none(clock: Clock) -> None:
    assert [line.split(",")[0] for line in run(clock, 0.1, 20)] == ["counting [x]: 20/20"]
    assert run(clock, 0.1, 20, transient=True) == []
    assert len(run(clock, INTERVAL, 3, transient=True)) == 3


def test_a_job_of_one_update_has_its_mean_rate(clock: Clock) -> None:
    assert run(clock, 2.0, 1) == ["counting [x]: 1/1, 0.5 rows/s"]
    stream = io.StringIO()
    for seconds, before in ((4.0, 0), (4.0, 100), (0.0, 0)):
        with progress_bar(True, MofNCompleteColumn(), Rate("rows"), console=Console(file=stream)) as bar:
            bar.get_time = clock
            job = bar.add_task("counting", total=300, completed=before, before=before)
            clock.now += seconds
            bar.advance(job, 300 - before)
    assert stream.getvalue().splitlines() == [
        "counting: 300/300, 75 rows/s",
        "counting: 300/300, 50 rows/s",  # without those of an earlier process
        "counting: 300/300",  # no time has passed
    ]


def test_a_terminal_has_bars_and_hidden_progress_prints_nothing() -> None:
    terminal = Console(file=io.StringIO(), force_terminal=True)
    assert not isinstance(progress_bar(True, console=terminal), progress.PlainProgress)
    stream = io.StringIO()
    with progress_bar(False, console=Console(file=stream)) as bar:
        bar.advance(bar.add_task("x", total=1, speed=""))
    assert stream.getvalue() == ""
