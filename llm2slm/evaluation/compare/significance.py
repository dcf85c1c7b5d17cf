"""Whether a difference between two systems is more than the luck of the rows: intervals and paired tests. numpy alone.

What is resampled are whole rows: a row's source, its reference and every system's answer stay together. A metric of a
corpus (BLEU) is not a mean over rows, but it is a function of sums over rows; what each row adds to these sums is all
that is needed here (`RowStatistics`), and a resampled corpus is a matrix product.

* Bootstrap (Koehn 2004, "Statistical Significance Tests for Machine Translation Evaluation"; Efron and Tibshirani
  1993): N rows are drawn with replacement from the N rows, many times. Intervals are percentiles of what that gives.
* Approximate randomization (Riezler and Maxwell 2005, "On Some Pitfalls in Automatic Evaluation and Significance
  Testing for MT"; Noreen 1989): the two systems' answers are swapped in each row by the toss of a coin, many times.
* Holm (1979, "A Simple Sequentially Rejective Multiple Test Procedure"): for several comparisons at once.

Both p-values are two-sided and never 0: they count the observed data among the resamples. The same seed gives the same
draws, whatever the systems and metrics, so that figures of one call are paired with each other. None of this tells how
another training run would have come out.

Shapes: N rows, K statistics of a row, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Advance = Callable[[int], object]
"""Called with the number of resamples that have been done since the last call."""

CHUNK = 1 << 20
"""Draws held in memory at once, about; a multiple of 32 draws at least, of which one random word makes coins."""
TIE = 1e-9
"""Differences that are as large but for rounding count as equal."""


@dataclass(frozen=True)
class RowStatistics:
    """What one system's rows add to one metric."""

    rows_NK: Array
    """Numbers that are added over rows."""
    score: Callable[[Array], Array]
    """Sums (R x K) -> the metric of each (R); not finite where it is undefined."""

    @property
    def corpus(self) -> float:
        """The metric over all rows as they are."""
        return float(self.score(self.rows_NK.sum(0, keepdims=True))[0])


def bootstrap(
    systems: Sequence[RowStatistics], resamples: int, seed: int, advance: Advance = lambda _: None
) -> list[Array]:
    """The metric of each of `systems` on the same resampled rows: for each, one value a resample (R).

    Args:
        systems: any number, of any metrics, over the same N rows.
    """
    rows = len(systems[0].rows_NK)
    rng = np.random.default_rng(seed)
    scores: list[list[Array]] = [[] for _ in systems]
    for size in _chunks(resamples, rows):
        drawn = rng.integers(rows, size=(size, rows))
        counts_RN = np.stack([np.bincount(row, minlength=rows) for row in drawn]).astype(np.float64)
        for found, system in zip(scores, systems, strict=True):
            found.append(system.score(counts_RN @ system.rows_NK))
        advance(size)
    return [np.concatenate(found) for found in scores]


def interval(values_R: Array, level: float = 0.95) -> tuple[float, float]:
    """The range that holds the middle `level` of the resampled values (percentile interval).

    Resamples on which the value is undefined are left out.
    """
    low, high = np.quantile(values_R[np.isfinite(values_R)], [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bootstrap_p(differences_R: Array) -> float:
    """Two-sided p-value of the paired bootstrap.

    Twice the share of resamples on which the system that is ahead is not. Koehn counts one side, for a system known to
    be the better one; here neither is. It is below 0.05 where the 95 % interval of the difference leaves 0 out, give or
    take a resample.

    Args:
        differences_R: system minus baseline, on the same resamples.
    """
    found = differences_R[np.isfinite(differences_R)]
    behind = min(int((found <= TIE).sum()), int((found >= -TIE).sum()))
    return min(1.0, 2 * (behind + 1) / (len(found) + 1))


def randomization_p(
    system: RowStatistics, baseline: RowStatistics, shuffles: int, seed: int, advance: Advance = lambda _: None
) -> float:
    """Two-sided p-value of approximate randomization.

    The share of shuffles, the observed answers among them, whose difference is at least as large as the observed one,
    whatever its sign. If both systems were as good on every row, it would be uniform.
    """
    rows = len(system.rows_NK)
    swapped_NK = baseline.rows_NK - system.rows_NK
    own_K, both_K = system.rows_NK.sum(0), system.rows_NK.sum(0) + baseline.rows_NK.sum(0)
    observed = abs(system.corpus - baseline.corpus) - TIE
    rng = np.random.default_rng(seed)
    as_large = 0
    for size in _chunks(shuffles, rows):
        swap_RN = rng.integers(2, size=(size, rows), dtype=np.bool_)
        sums_RK = own_K + swap_RN.astype(np.float64) @ swapped_NK
        differences_R = system.score(sums_RK) - baseline.score(both_K - sums_RK)
        as_large += int((np.abs(differences_R) >= observed).sum())
        advance(size)
    return (as_large + 1) / (shuffles + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of several comparisons, adjusted so that a threshold bounds the chance of any wrong rejection at all."""
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def _chunks(resamples: int, rows: int) -> Iterator[int]:
    """Sizes of the parts that `resamples` are done in. The draws do not depend on them."""
    size = max(32, CHUNK // rows // 32 * 32)
    for start in range(0, resamples, size):
        yield min(size, resamples - start)
