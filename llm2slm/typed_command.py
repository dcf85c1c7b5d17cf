"""The command line of this process as a line that a shell reads, for results and logs."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable


def command(change: Callable[[str], str] = str) -> str:
    """The command line of this process, on one line.

    Args:
        change: applied to each argument before it is quoted.
    """
    return " ".join(["llm2slm", *(quoted(change(argument)) for argument in sys.argv[1:])])


def quoted(argument: str) -> str:
    """An argument in the quotes of the shell; with characters that cannot be printed, in those of bash ($'...')."""
    if argument.isprintable():
        return shlex.quote(argument)
    return f"$'{''.join(map(_escaped, argument))}'"


def _escaped(character: str) -> str:
    if character in "\\'":
        return f"\\{character}"
    return character if character.isprintable() else f"\\U{ord(character):08x}"
