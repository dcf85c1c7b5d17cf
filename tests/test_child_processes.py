"""Processes that are started by this project stop on request, however the first one was started."""

from __future__ import annotations

import subprocess
import sys

CHILD = """
import signal
signal.signal(signal.SIGINT, signal.{before})
from llm2slm.child_processes import stop_with_parent
stop_with_parent()
print(signal.getsignal(signal.SIGINT) is signal.{after})
input()
"""


def handled(before: str, after: str) -> str:
    """What a child prints whose Ctrl-C is handled as `before` says, after the call that lets its parent stop it."""
    code = CHILD.format(before=before, after=after)
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as it:
        line = it.stdout.readline()
        it.kill()
    return line.strip()


def test_of_a_command_in_the_background_the_children_can_be_interrupted() -> None:
    assert handled("SIG_IGN", "default_int_handler") == "True"
    assert handled("SIG_DFL", "SIG_DFL") == "True"  # other handlers are kept
