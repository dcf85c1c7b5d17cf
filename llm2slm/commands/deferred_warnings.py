"""Warnings that wait until the checks of a command are done: a user's mistake is then one line, with no warning above.

The command line holds them; a command shows them where its work starts.
"""

from __future__ import annotations

import sys

_HELD: list[str] = []


def hold_warning(line: str) -> None:
    """Keeps a line for `show_held`."""
    _HELD.append(line)


def show_held() -> None:
    """Prints on stderr what is held, once."""
    while _HELD:
        print(f"llm2slm: warning: {_HELD.pop(0)}", file=sys.stderr, flush=True)


def drop_held() -> None:
    """Forgets what is held."""
    _HELD.clear()
