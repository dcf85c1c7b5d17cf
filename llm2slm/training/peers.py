"""The other processes of a distributed training: if one of them ends, the command ends with one line that names it."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from subprocess import Popen
from typing import Any

from lightning.fabric.strategies.launchers import subprocess_script as of_fabric
from lightning.pytorch.strategies.launchers import subprocess_script as of_trainer

from llm2slm.child_processes import POLL, by_signal
from llm2slm.processes import PeerEnded, is_lost_connection

OBSERVER = "_launch_process_observer"
"""Function of the modules of Lightning's launchers; called after the processes were started."""
WAITED = 10.0
"""Seconds in which a process whose peer has ended notices it by itself (gloo does at once, NCCL does not)."""


@contextmanager
def watched(message: Callable[[str], str] = str) -> Iterator[None]:
    """Within the block, the end of another process is raised as `PeerEnded`, and all processes end.

    Replaces Lightning's observer, which kills this process too (SIGKILL), so that it can report nothing.

    Args:
        message: the line that is reported, for a description of the ended process.

    Raises:
        PeerEnded: a collective operation of this process failed because another process has ended.
    """
    watch = Watch(message)
    before = {module: getattr(module, OBSERVER) for module in (of_fabric, of_trainer)}
    try:
        for module in before:
            setattr(module, OBSERVER, watch.begin)
        yield
    except RuntimeError as error:
        if not is_lost_connection(error):
            raise
        raise PeerEnded(message(watch.found())) from error
    finally:
        watch.end()
        for module, observer in before.items():
            setattr(module, OBSERVER, observer)


class Watch:
    """The processes that this one has started, and a thread that waits for the failure of one of them."""

    def __init__(self, message: Callable[[str], str], waited: float = WAITED) -> None:
        self.message, self.waited = message, waited
        self.processes: Sequence[Popen[Any]] = ()
        self._done = threading.Event()

    def begin(self, processes: Sequence[Popen[Any]]) -> None:
        """Called by Lightning after it has started the processes."""
        self.processes = processes
        threading.Thread(target=self._wait, name="peers", daemon=True).start()

    def end(self) -> None:
        """Ends the thread."""
        self._done.set()

    def found(self) -> str:
        """A description of the first process that failed; kills the others, which wait for it.

        A process that ends by an exception closes its connections before it has ended, so it is waited for.
        """
        deadline = time.monotonic() + (self.waited if self.processes else 0.0)
        while (failed := self._failed()) is None and time.monotonic() < deadline:
            time.sleep(POLL)
        for process in self.processes:
            process.kill()
        return "another process has ended" if failed is None else failed

    def _failed(self) -> str | None:
        codes = {rank: process.poll() for rank, process in enumerate(self.processes, start=1)}
        failed = {rank: code for rank, code in codes.items() if code}
        if not failed:
            return None
        rank = min(failed, key=lambda each: (failed[each] > 0, each))  # others fail as a consequence
        reason = by_signal(failed[rank]).removeprefix("its process ") or f"has ended with exit code {failed[rank]}"
        return f"process {rank} {reason}"

    def _wait(self) -> None:
        while (failed := self._failed()) is None:
            if self._done.wait(POLL):
                return
        if self._done.wait(self.waited):
            return
        # The main thread waits within NCCL or computes: it cannot receive an exception, so this thread ends it.
        print(f"llm2slm: error: {self.message(failed)}", file=sys.stderr, flush=True)
        for process in self.processes:
            process.kill()
        os._exit(1)
