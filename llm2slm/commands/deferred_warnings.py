"""Warnings that are deferred until a command's checks have passed, so that an error stays a single line.

The command line defers them; a command shows them when its work starts.
"""

from __future__ import annotations

import sys

_HELD: list[str] = []


def hold_warning(line: str) -> None:
    """Defers a line until `show_held`."""
    _HELD.append(line)


def show_held() -> None:
    """Prints the deferred lines to stderr, once."""
    while _HELD:
        print(f"llm2slm: warning: {_HELD.pop(0)}", file=sys.stderr, flush=True)


def drop_held() -> None:
    """Discards the deferred lines."""
    _HELD.clear()
