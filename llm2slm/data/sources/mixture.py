"""A mixture of corpora: how many training rows of each, which ones, in what order. Pure functions of counts and seed.

Shares are exact to the row. Where no part may repeat its rows, the mixture is as large as the part that runs out first
allows; a part that may repeat them sets no limit. For validation and test weights do not count: each row is there once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from math import ceil, floor
from typing import TypeVar

import numpy as np

from llm2slm.config import CorpusConfig, PartConfig
from llm2slm.types import UserError

T = TypeVar("T")

PRECISION = 10**6
"""Weights are taken as fractions with denominators up to this."""


def check_parts(parts: Sequence[PartConfig]) -> None:
    """Refuses parts that cannot be mixed.

    Raises:
        UserError: names the part and the key.
    """
    if not parts:
        raise UserError("data=mixture: no parts; give data.parts=[{name: samsum, weight: 2}, {name: multi30k}]")
    for number, part in enumerate(parts):
        place = f"data.parts[{number}]"
        if not part.name:
            raise UserError(f"{place}: has no name; give a corpus, as name: samsum")
        if part.name == "mixture" or (part.name, part.corpus) == ("builtin", "mixture"):
            raise UserError(f"{place}: is a mixture itself; give its parts one by one")
        if not 1 / PRECISION <= part.weight <= PRECISION:  # so that nan is refused too
            raise UserError(f"{place}: weight={part.weight}: must be a number above 0")


def labels(parts: Sequence[CorpusConfig]) -> list[str]:
    """A name for each part, different for each."""
    found: list[str] = []
    seen: Counter[str] = Counter()
    for part in parts:
        name = part.corpus if part.name == "builtin" else (part.path or part.name) if part.name == "hub" else part.name
        seen[name] += 1
        found.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return found


def shares(sizes: Sequence[int], parts: Sequence[PartConfig], limit: int | None = None) -> list[int]:
    """How many training rows each part gives.

    Args:
        sizes: how many it has.
        limit: rows of the mixture at most.

    Raises:
        UserError: a part's share is not a single row.
    """
    weights = [Fraction(part.weight).limit_denominator(PRECISION) for part in parts]
    portions = [weight / sum(weights) for weight in weights]
    room = [size / portion for size, portion in zip(sizes, portions, strict=True)]
    bounds = [floor(rows) for rows, part in zip(room, parts, strict=True) if not part.repeat]
    total = min(bounds) if bounds else ceil(max(room))  # all may repeat: until each has been seen whole
    total = total if limit is None else min(total, limit)
    exact = [total * portion for portion in portions]
    counts = [floor(rows) for rows in exact]
    by_remainder = sorted(range(len(parts)), key=lambda k: counts[k] - exact[k])  # equal ones in their order
    for k in by_remainder[: total - sum(counts)]:
        counts[k] += 1
    for number, count in enumerate(counts):
        if not count:
            raise UserError(
                f"data.parts[{number}]: its share of the {total} rows is less than one; raise its weight, or let the "
                "part that limits them repeat its rows (repeat: true)"
            )
    return counts


def drawn(rows: Sequence[T], count: int, seed: int, number: int) -> list[T]:
    """So many rows in an order drawn from the seed: each once before any comes again.

    Args:
        number: of the part, so that parts draw independently.
    """
    draw = np.random.default_rng((seed, number))
    order: list[int] = []
    while len(order) < count:
        order += draw.permutation(len(rows)).tolist()
    return [rows[i] for i in order[:count]]


def interleaved(parts: Sequence[Sequence[T]]) -> list[T]:
    """Every part spread evenly over the whole, each in its own order."""
    placed = [((i + 0.5) / len(part), k, i) for k, part in enumerate(parts) for i in range(len(part))]
    return [parts[k][i] for _, k, i in sorted(placed)]
