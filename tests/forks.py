"""Forks of a test's process, to be killed at any moment; they inherit all loaded modules."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable


def forked(work: Callable[[], object]) -> int:
    """Runs `work` in a fork, which ends with 0, or with 1 and a traceback; returns its process id."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return child


def finished(status: int) -> bool:
    """Whether a fork completed, by the status of `os.waitpid`; otherwise it was killed."""
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, -signal.SIGKILL), "the work failed"
    return code == 0
