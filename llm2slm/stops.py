"""Signals that end a command in an orderly way, and the exit codes by which schedulers recognize them.

SIGTERM (Slurm, Kubernetes, `kill`), SIGUSR1 (the early warning of a scheduler) and SIGHUP (the terminal was closed) are
raised as an exception in the main thread, as Python does for Ctrl-C. So files are closed, partial results are kept, and
the command that continues is printed. `training.signals` replaces the handlers while a training can save a checkpoint.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")
"""Signals that end a command; Windows has the first two only."""


class Stopped(KeyboardInterrupt):
    """A signal ends the command.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__(number)
        self.number = int(number)


def exit_code(error: KeyboardInterrupt) -> int:
    """128 plus the number of the signal: 130 after Ctrl-C, 143 after SIGTERM, 138 after SIGUSR1, 129 after SIGHUP."""
    return 128 + (error.number if isinstance(error, Stopped) else signal.SIGINT)


def ending() -> list[int]:
    """Numbers of the signals that end a command. A signal that is ignored (by nohup) stays ignored."""
    numbers = [int(getattr(signal, name)) for name in NAMES if hasattr(signal, name)]
    return [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]


Handlers = dict[int, Any]


def install(numbers: list[int], handler: Callable[[int, Any], None]) -> Handlers:
    """Installs a handler for signals, in the main thread only; returns the previous handlers for `restore`."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, handler) for number in numbers}


def restore(handlers: Handlers) -> None:
    """Restores previous handlers. (None: one that was not installed from Python, which cannot be restored.)"""
    for number, handler in handlers.items():
        if handler is not None:
            signal.signal(number, handler)


@contextmanager
def raised() -> Iterator[None]:
    """Raises `Stopped` within the block when a signal arrives.

    A signal for which the calling program has a handler (submitit has some) keeps it. Ctrl-C keeps Python's.
    """

    def stop(number: int, frame: Any) -> None:
        del frame
        raise Stopped(number)

    handlers = install([number for number in ending() if signal.getsignal(number) is signal.SIG_DFL], stop)
    try:
        yield
    finally:
        restore(handlers)
