"""Times of one generation, read from a clock as the tokens arrive."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Clock:
    """The source of time; tests replace it."""

    read: Callable[[], float] = time.perf_counter
    synchronize: Callable[[], None] = field(
        default_factory=lambda: torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    )

    def seconds(self) -> float:
        """The time in seconds, after all work that was started has finished."""
        self.synchronize()
        return self.read()


class Arrivals:
    """The `on_tokens` of a generation: records when tokens arrive, and how many."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.times: list[float] = []
        self.counts: list[Tensor] = []

    def __call__(self, rows_K: Tensor, ids_KN: Tensor, counts_K: Tensor) -> None:
        """See `decoder.OnTokens`."""
        del rows_K, ids_KN
        self.times.append(self.clock.seconds())
        self.counts.append(counts_K)

    @property
    def tokens(self) -> int:
        """All tokens that arrived, of all rows."""
        return sum(int(counts_K.sum()) for counts_K in self.counts)


@dataclass
class Timing:
    """Seconds of one round of one system, summed over the condition's requests.

    Attributes:
        steps: times between two arrivals, of all requests.
    """

    prefill: float = 0.0
    total: float = 0.0
    steps: list[float] = field(default_factory=list)

    def add(self, begun: float, arrivals: Sequence[float], end: float) -> None:
        """Adds a request.

        Args:
            begun, end: before and after the call of `generate`. arrivals: in ascending order, at least one.
        """
        self.prefill += arrivals[0] - begun
        self.total += end - begun
        self.steps += [later - earlier for earlier, later in itertools.pairwise(arrivals)]


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of the values that at least `share` of them do not exceed."""
    return sorted(values)[max(math.ceil(share * len(values)) - 1, 0)]
