"""Processes that this one starts, watches and stops: the systems of a demo, the jobs of a sweep.

A process is started anew, not forked: a fork would inherit the locks of torch's threads. It stops, as on a signal, when
the process that started it ends for any reason (`stop_with_parent`).
"""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

POLL = 0.2
"""Seconds between checks of the processes and their files."""
GRACE = 60.0
"""Seconds that a process has to save its state after a request to stop; then it is killed."""
ERROR = "llm2slm: error: "
"""Start of the line of a user error on the error stream."""
STOP = b"\n"
"""Written to the standard input of a process before a stop is requested by a signal."""
_STOPPING = [int(getattr(signal, name)) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name)]
INTERRUPTED = frozenset(code for number in _STOPPING for code in (128 + number, -number))
"""Exit codes of a process that a request to stop has ended."""


class Child:
    """A Python process in a session of its children, so that the terminal's Ctrl-C reaches only its parent.

    Args:
        arguments: of the interpreter. stdout, stderr: as of `Popen`.
        message: written to its standard input, which stays open: its end means that the parent has ended.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        stdout: int | IO[Any],
        stderr: int | IO[Any],
        message: bytes = b"",
    ) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *arguments], stdin=subprocess.PIPE, stdout=stdout, stderr=stderr, env=dict(environment),
            start_new_session=True,
        )  # fmt: skip
        self._write(message)

    def _write(self, message: bytes) -> None:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # the process has ended already; its exit code is reported
            self.process.stdin.write(message)
            self.process.stdin.flush()

    def ended(self) -> bool:
        """Whether the process has ended."""
        return self.process.poll() is not None

    def interrupt(self, number: int = signal.SIGINT) -> None:
        """Sends a signal that requests a stop. (Windows has none for one process: there it is ended.)"""
        if self.process.poll() is None:
            self._write(STOP)
            self.process.send_signal(signal.SIGTERM if os.name == "nt" else number)

    def kill(self) -> None:
        """Kills the process and the processes that it started."""
        if os.name != "nt":
            with suppress(ProcessLookupError, PermissionError):  # no process of the group is left
                os.killpg(self.process.pid, signal.SIGKILL)
        if self.process.poll() is None:
            self.process.kill()


def stop(running: Sequence[Child], number: int = signal.SIGINT, grace: float = GRACE) -> None:
    """Requests a stop of all processes; kills those that have not ended after `grace` seconds."""
    for each in running:
        each.interrupt(number)
    deadline = time.monotonic() + grace
    for each in running:
        try:
            each.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            each.kill()
            each.process.wait()
        each.ended()


def environment(threads: int | None = None, **more: str) -> dict[str, str]:
    """The environment of a process: the same package, UTF-8, output without delay, and the number of threads."""
    home = str(Path(__file__).resolve().parents[1])
    paths = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")]))
    found = {**os.environ, "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
    if threads is not None:
        found |= {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    return found | more


def by_signal(code: int) -> str:
    """A negative exit code in words; "" for others."""
    if code >= 0:
        return ""
    hint = " (often a lack of memory)" if code == -9 else ""
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = "of an unknown name"
    return f"its process was ended by signal {-code}, {name}{hint}"


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """The signals (Ctrl-C, SIGTERM) that arrive within the block, which do not interrupt it."""
    arrived: list[int] = []
    handlers: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for each in (signal.SIGINT, signal.SIGTERM):
            handlers[each] = signal.signal(each, lambda number, _: arrived.append(number))
    try:
        yield arrived
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def stop_with_parent(number: int = signal.SIGINT) -> None:
    """Starts a thread that waits for the end of standard input, which is the end of the parent; then it sends this
    process a signal, unless the parent has requested a stop before (a second signal would stop it without saving).

    A process that was started in the background inherits that Ctrl-C is ignored; its parent sends one as a request.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=_wait_for_the_end, args=(number,), daemon=True).start()


def _wait_for_the_end(number: int) -> None:
    requested = False
    while os.read(0, 1):
        requested = True
    with open(os.devnull, "wb") as nowhere:  # noqa: PTH123
        for stream in (1, 2):
            if not stat.S_ISREG(os.fstat(stream).st_mode):  # a log is kept; nobody reads a pipe any more
                os.dup2(nowhere.fileno(), stream)
    if not requested:
        os.kill(os.getpid(), signal.SIGTERM if os.name == "nt" else number)
