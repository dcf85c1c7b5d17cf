"""Spelling suggestions for messages about an unknown name."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that is most similar to an unknown one."""
    return get_close_matches(name, list(known), n=1, cutoff=0.0)[0]


def similar(name: str, known: Iterable[str]) -> str | None:
    """The known name that is most similar to an unknown one; None if none is similar."""
    return next(iter(get_close_matches(name, list(known), n=1, cutoff=0.5)), None)


def nearest_hint(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: "; nearest: a, b, c"; "" if no known name is similar."""
    found = get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f"; nearest: {', '.join(found)}" if found else ""
