"""Assignment of rows to training batches: rows of similar length, as many as fit the token budget, in seeded order.

The assignment is a pure function of lengths, budget and seed. Rows in memory follow a `BatchPlan`, epoch by epoch; rows
of a stream are batched chunk by chunk by `shared_batches`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any, TypeVar

import numpy as np

from llm2slm.types import Batch, UserError

RowT = TypeVar("RowT")
LENGTH_STEP = 4
"""Tokens: rows whose prompt and response lengths round up to the same multiples may be exchanged between batches."""

Lengths = np.ndarray[Any, np.dtype[np.int64]]


class BatchPlan:
    """The batches of each epoch: a pure function of the lengths, the budget, the seed and the epoch.

    Rows are sorted by rounded length; rows of equal length are shuffled in each epoch. The sorted lengths, and so the
    boundaries and the number of batches, are the same in every epoch.

    Args:
        lengths: prompt and response tokens of each row.
        batch_tokens: maximum number of tokens in a batch, padding included; a longer row is a single batch.
        seed: of the shuffles.
        rank: this process; it gets the batches rank, rank + world_size, ... of an epoch.
        world_size: number of processes; the last round of an epoch is completed with the epoch's first batches.
        limit: use only this number of batches, the same ones in every epoch (Lightning's overfit_batches).
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
        """Number of batches of an epoch for each process."""

    def epoch(self, number: int) -> list[list[int]]:
        """The batches of this process in an epoch, as row positions."""
        draw = np.random.default_rng((self._seed, 0 if self._limit is not None else number))
        shuffled = draw.permutation(len(self._keys[0]))
        order = shuffled[np.lexsort([key[shuffled] for key in self._keys])]
        batches = [part.tolist() for part in np.split(order, self._cuts[1:])]
        turn = draw.permutation(len(batches))[: self.batches * self._world]
        mine = [turn[(i * self._world + self._rank) % len(turn)] for i in range(self.batches)]
        return [batches[i] for i in mine]


class TrainLoader:
    """Batches of a plan: each `iter` continues after the last batch, from any batch of any epoch, to the epoch's end.

    Its state is the number of batches since the start of training.

    Args:
        make: row positions of the next batches -> an iterable of `Batch`.
        plan: the batches of each epoch.
        done: number of batches trained on. Default: the number of batches delivered, which includes one in progress.
    """

    def __init__(
        self, make: Callable[[list[list[int]]], Any], plan: BatchPlan, done: Callable[[], int] | None = None
    ) -> None:
        self._make, self._plan, self._done = make, plan, done
        self.delivered = 0

    def __len__(self) -> int:
        return self._plan.batches

    def __iter__(self) -> Iterator[Batch]:
        epoch, position = divmod(self.delivered, len(self))
        for batch in self._make(self._plan.epoch(epoch)[position:]):
            self.delivered += 1  # before the batch is used: a checkpoint written after it must not repeat it
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The position as plain numbers, for a checkpoint."""
        done = self.delivered if self._done is None else self._done()
        return {"batches_done": done, "batches_per_epoch": len(self)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Restores the position.

        Raises:
            UserError: the state belongs to other data, another batch size or another number of processes.
        """
        if "batches_per_epoch" not in state:
            raise UserError("the checkpoint is of a training with data.streaming; to resume, set data.streaming=true")
        if state["batches_per_epoch"] != len(self):
            raise UserError(
                f"the checkpoint's epochs have {state['batches_per_epoch']} batches, this run's {len(self)}; to "
                "resume, use the same data, data.batch_tokens and trainer.devices"
            )
        self.delivered = state["batches_done"]


def cuts(lengths: Lengths, batch_tokens: int) -> list[int]:
    """Position of the first row of each batch, in rows sorted by length."""
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
    """Batches of all rows, in random order; their number is a multiple of `world_size`.

    Args:
        lengths: prompt and response tokens of each row; the number of rows is a multiple of `world_size`.
        seed: of the random order.
    """
    draw = np.random.default_rng(seed)
    rounded = _rounded(lengths)
    shuffled = draw.permutation(len(rounded))
    order = shuffled[np.lexsort((rounded[shuffled, 1], rounded[shuffled, 0], rounded[shuffled].sum(1)))]
    batches = np.split(order, cuts(rounded[order], batch_tokens)[1:])
    while len(batches) % world_size:  # splits the batch with the most rows
        longest = max(range(len(batches)), key=lambda i: len(batches[i]))
        batches[longest : longest + 1] = np.array_split(batches[longest], 2)
    return [batches[i].tolist() for i in draw.permutation(len(batches))]


def _rounded(lengths: Sequence[tuple[int, int]]) -> Lengths:
    return -(-np.asarray(lengths, dtype=np.int64) // LENGTH_STEP) * LENGTH_STEP


def drawn(rows: list[RowT], limit: int | None) -> list[RowT]:
    """At most `limit` random rows, in their order. The run's seed has no effect: all runs get the same rows."""
    if limit is None or limit >= len(rows):
        return rows
    return [rows[i] for i in sorted(Random(0).sample(range(len(rows)), limit))]
