"""Spelling suggestions for messages about an unknown name."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(name: str, known: Iterable[str], n: int = 1, cutoff: float = 0.0) -> list[str]:
    """The known names most similar to a name, best first.

    Args:
        n: number of names at most.
        cutoff: similarity from 0 to 1 (difflib) that a name needs.
    """
    return get_close_matches(name, list(known), n=n, cutoff=cutoff)


def nearest_hint(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: "; nearest: a, b, c"; "" if no known name is similar."""
    found = nearest(name, known, n=3, cutoff=0.6)
    return f"; nearest: {', '.join(found)}" if found else ""
