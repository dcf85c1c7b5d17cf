"""Which rows make which training batch: of like length, as many as fit the token budget, in seeded order.

Pure functions of lengths, budget and seed. Rows in memory follow a `BatchPlan`, epoch by epoch; rows of a stream are
batched chunk by chunk, with `shared_batches`.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any, TypeVar

import numpy as np

RowT = TypeVar("RowT")
LENGTH_STEP = 4
"""Tokens: prompts (and responses) whose lengths round up to the same multiple are exchanged between batches."""

Lengths = np.ndarray[Any, np.dtype[np.int64]]


class BatchPlan:
    """Which rows make which training batch: a pure function of the lengths, the budget, the seed and the epoch.

    Rows are sorted by rounded length; equal ones are shuffled per epoch. The sorted lengths, hence the cuts between
    batches and their number, do not depend on the epoch.

    Args:
        lengths: prompt and response tokens of each row.
        batch_tokens: padded tokens in a batch at most; a row above it is a batch of its own.
        seed: of the shuffles.
        rank: this process; it gets the batches rank, rank + world_size, ... of an epoch.
        world_size: processes; the last round of an epoch is filled up with its first batches.
        limit: use only this many batches, the same ones in every epoch (Lightning's overfit_batches).
    """

    def __init__(
        self,
        lengths: Sequence[tuple[int, int]],
        batch_tokens: int,
        seed: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        limit: int | None = None,
    ) -> None:
        rounded = _rounded(lengths)
        self._keys = (rounded[:, 1], rounded[:, 0], rounded.sum(1))  # np.lexsort: the last one sorts first
        self._seed, self._rank, self._world, self._limit = seed, rank, world_size, limit
        self._cuts = cuts(rounded[np.lexsort(self._keys)], batch_tokens)
        batches = len(self._cuts) if limit is None else min(limit * world_size, len(self._cuts))
        self.batches = -(-batches // world_size)
        """Batches of an epoch for each process."""

    def epoch(self, number: int) -> list[list[int]]:
        """The batches of this process in that epoch, as row positions."""
        draw = np.random.default_rng((self._seed, 0 if self._limit is not None else number))
        shuffled = draw.permutation(len(self._keys[0]))
        order = shuffled[np.lexsort([key[shuffled] for key in self._keys])]
        batches = [part.tolist() for part in np.split(order, self._cuts[1:])]
        turn = draw.permutation(len(batches))[: self.batches * self._world]
        mine = [turn[(i * self._world + self._rank) % len(turn)] for i in range(self.batches)]
        return [batches[i] for i in mine]


def cuts(lengths: Lengths, batch_tokens: int) -> list[int]:
    """Where each batch begins, in rows sorted by length."""
    found, prompt, response = [0], 0, 0
    for i, (p, r) in enumerate(lengths.tolist()):
        prompt, response = max(prompt, p), max(response, r)
        if i > found[-1] and (i + 1 - found[-1]) * (prompt + response) > batch_tokens:
            found.append(i)
            prompt, response = p, r
    return found


def shared_batches(
    lengths: Sequence[tuple[int, int]], batch_tokens: int, seed: Sequence[int], world_size: int
) -> list[list[int]]:
    """Every row in one batch, in drawn order; a number of batches that `world_size` divides, so that all get as many.

    Args:
        lengths: prompt and response tokens of each row; a number of rows that `world_size` divides.
        seed: of the draw.
    """
    draw = np.random.default_rng(seed)
    rounded = _rounded(lengths)
    shuffled = draw.permutation(len(rounded))
    order = shuffled[np.lexsort((rounded[shuffled, 1], rounded[shuffled, 0], rounded[shuffled].sum(1)))]
    batches = np.split(order, cuts(rounded[order], batch_tokens)[1:])
    while len(batches) % world_size:  # there are enough rows to make one of the longest batch two, so often
        longest = max(range(len(batches)), key=lambda i: len(batches[i]))
        batches[longest : longest + 1] = np.array_split(batches[longest], 2)
    return [batches[i].tolist() for i in draw.permutation(len(batches))]


def _rounded(lengths: Sequence[tuple[int, int]]) -> Lengths:
    return -(-np.asarray(lengths, dtype=np.int64) // LENGTH_STEP) * LENGTH_STEP


def drawn(rows: list[RowT], limit: int | None) -> list[RowT]:
    """At most so many rows, in their order. They are drawn without the run's seed, so runs are compared on the same."""
    if limit is None or limit >= len(rows):
        return rows
    return [rows[i] for i in sorted(Random(0).sample(range(len(rows)), limit))]
