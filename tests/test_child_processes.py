"""Child processes of this project stop on request, however the parent process was started."""

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
    """Output of a child that handles Ctrl-C as in `before`, after the call that lets its parent stop it."""
    code = CHILD.format(before=before, after=after)
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as it:
        line = it.stdout.readline()
        it.kill()
    return line.strip()


def test_children_of_a_background_command_can_be_interrupted() -> None:
    assert handled("SIG_IGN", "default_int_handler") == "True"
    assert handled("SIG_DFL", "SIG_DFL") == "True"  # other handlers are kept
