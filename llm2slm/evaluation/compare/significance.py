"""Significance of a difference between two systems: bootstrap intervals and paired tests. Needs numpy only.

Whole rows are resampled: source, reference and predictions of all systems stay together. A corpus metric (BLEU) is not
a mean over rows, but a function of sums over rows (`RowStatistics`), so a resampled corpus is a matrix product.

* Bootstrap (Koehn 2004, "Statistical Significance Tests for Machine Translation Evaluation"; Efron and Tibshirani
  1993): N rows are drawn with replacement, many times. Intervals are percentiles of the resampled values.
* Approximate randomization (Riezler and Maxwell 2005, "On Some Pitfalls in Automatic Evaluation and Significance
  Testing for MT"; Noreen 1989): the two systems' predictions are swapped in each row with probability 1/2, many times.
* Holm (1979, "A Simple Sequentially Rejective Multiple Test Procedure"): for multiple comparisons.

Both p-values are two-sided and never 0: they count the observed data among the resamples. The same seed gives the same
draws for all systems and metrics, so that they are paired. The variation between training runs is not measured.

Shapes: N rows, K statistics of a row, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Advance = Callable[[int], object]
"""Called with the number of resamples done since the last call."""

CHUNK = 1 << 20
"""Approximate number of draws in memory; rounded to multiples of 32, the coins of one random word."""
TIE = 1e-9
"""Differences up to this size count as rounding errors."""


@dataclass(frozen=True)
class RowStatistics:
    """The contributions of one system's rows to one metric."""

    rows_NK: Array
    """Statistics that are summed over rows."""
    score: Callable[[Array], Array]
    """Sums (R x K) -> metric (R); not finite where undefined."""

    @property
    def corpus(self) -> float:
        """The metric over all rows."""
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
    """Percentile interval: the central `level` of the resampled values.

    Undefined values are left out.
    """
    low, high = np.quantile(values_R[np.isfinite(values_R)], [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bootstrap_p(differences_R: Array) -> float:
    """Two-sided p-value of the paired bootstrap.

    Twice the share of resamples on which the better system is not better. Koehn counts one side, for a system known to
    be better. It is below 0.05 if the 95 % interval of the difference excludes 0, up to one resample.

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

    The share of shuffles, the observed assignment included, whose absolute difference is at least the observed one. It
    is uniform if both systems are equally good on every row.
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
    """p-values of several comparisons, adjusted to control the family-wise error rate."""
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def _chunks(resamples: int, rows: int) -> Iterator[int]:
    """Sizes of the chunks of `resamples`. The draws do not depend on them."""
    size = max(32, CHUNK // rows // 32 * 32)
    for start in range(0, resamples, size):
        yield min(size, resamples - start)
