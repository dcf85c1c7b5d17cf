"""A mixture of corpora: number, selection and order of the rows of each part, as pure functions of counts and seed.

Shares are exact to one row. The size of a mixture is limited by the part without `repeat` that runs out of rows first.
Weights have no effect on validation and test: each row occurs once.
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
"""Weights are rounded to fractions with denominators up to this number."""


def check_parts(parts: Sequence[PartConfig]) -> None:
    """Checks that parts can be mixed.

    Raises:
        UserError: an invalid part; the message names the part and the key.
    """
    if not parts:
        raise UserError("data=mixture: no parts; give data.parts=[{name: samsum, weight: 2}, {name: multi30k}]")
    for number, part in enumerate(parts):
        key = f"data.parts[{number}]"
        if not part.name:
            raise UserError(f"{key}: has no name; give a corpus, for example name: samsum")
        if part.name == "mixture" or (part.name, part.corpus) == ("builtin", "mixture"):
            raise UserError(f"{key}: is a mixture; give its parts instead")
        if not 1 / PRECISION <= part.weight <= PRECISION:  # False for nan, too
            raise UserError(f"{key}: weight={part.weight}: must be a number above 0")


def labels(parts: Sequence[CorpusConfig]) -> list[str]:
    """A unique name for each part."""
    found: list[str] = []
    seen: Counter[str] = Counter()
    for part in parts:
        name = part.corpus if part.name == "builtin" else (part.path or part.name) if part.name == "hub" else part.name
        seen[name] += 1
        found.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return found


def shares(sizes: Sequence[int], parts: Sequence[PartConfig], limit: int | None = None) -> list[int]:
    """The number of training rows of each part in the mixture.

    Args:
        sizes: number of rows of each part.
        limit: maximum number of rows of the mixture.

    Raises:
        UserError: the share of a part is less than one row.
    """
    weights = [Fraction(part.weight).limit_denominator(PRECISION) for part in parts]
    portions = [weight / sum(weights) for weight in weights]
    largest = [size / portion for size, portion in zip(sizes, portions, strict=True)]
    bounds = [floor(rows) for rows, part in zip(largest, parts, strict=True) if not part.repeat]
    total = min(bounds) if bounds else ceil(max(largest))  # all may repeat: every row occurs
    total = total if limit is None else min(total, limit)
    exact = [total * portion for portion in portions]
    counts = [floor(rows) for rows in exact]
    by_remainder = sorted(range(len(parts)), key=lambda k: counts[k] - exact[k])  # a stable sort
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
    """`count` rows in random order; every row occurs once before any is repeated.

    Args:
        number: of the part; the random orders of parts are independent.
    """
    draw = np.random.default_rng((seed, number))
    order: list[int] = []
    while len(order) < count:
        order += draw.permutation(len(rows)).tolist()
    return [rows[i] for i in order[:count]]


def interleaved(parts: Sequence[Sequence[T]]) -> list[T]:
    """All parts merged, each spread evenly and in its order."""
    placed = [((i + 0.5) / len(part), k, i) for k, part in enumerate(parts) for i in range(len(part))]
    return [parts[k][i] for _, k, i in sorted(placed)]
