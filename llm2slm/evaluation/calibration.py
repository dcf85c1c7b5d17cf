"""The threshold of a cascade: the metric of the mixed answers for every share that the LLM writes, with uncertainty.

The LLM writes the answers of the lowest confidence. The metric of a mixture is computed from the per-row statistics of
both systems, exactly, for corpus metrics too. Needs numpy only.

Shapes: N rows, K statistics of a row, R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from llm2slm.evaluation.compare.significance import TIE, Advance, Array, RowStatistics, bootstrap, interval

POINTS = 101
"""Points of a curve; of more different thresholds those nearest to evenly spaced shares, and the chosen ones."""
LEVEL = 0.95
"""Of the intervals, and the probability of the `likely` point."""


@dataclass
class Point:
    """A threshold, and the cascade with it. Intervals are of bootstrap resamples of the rows.

    Attributes:
        threshold: the LLM writes the answers whose confidence is below it.
        share: of the answers that the LLM writes.
        quality: the metric of the mixed answers. kept: that over the LLM's metric; low, high: its interval (None:
            undefined).
        probability: share of the resamples on which the requested quality is kept.
        ms_per_answer: expected: the hybrid's, and for the share the LLM's. speedup: the LLM's over it.
    """

    threshold: float
    share: float
    quality: float
    kept: float
    low: float | None
    high: float | None
    probability: float
    ms_per_answer: float
    speedup: float


@dataclass
class Costs:
    """Milliseconds per answer, of both systems in turn in one process, at one batch size; `rows`: timed answers."""

    hybrid_ms: float
    llm_ms: float
    batch: int
    rows: int


@dataclass
class Calibration:
    """The content of calibration.json.

    Attributes:
        threshold: the highest share of the hybrid's answers that keeps the requested quality on these rows.
        confidence: the measure that the threshold is for. requested: quality kept.
        chosen: the point of the threshold. threshold_interval: of the thresholds chosen on resamples of the rows.
        likely: the point with the lowest share whose `probability` is at least `LEVEL`.
        costs: of which the speeds are computed. weights: fingerprints of hybrid and LLM. split: of the rows.
        curve: by share, from the hybrid alone (threshold -inf) to the LLM alone (inf).
    """

    threshold: float
    confidence: str
    metric: str
    signature: str
    requested: float
    chosen: Point
    threshold_interval: tuple[float, float]
    likely: Point
    rows: int
    resamples: int
    seed: int
    costs: Costs
    curve: list[Point]
    level: float = LEVEL
    split: str = "validation"
    weights: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Scored:
    """Both systems on the same rows: statistics of one metric whose higher values are better, and confidence (N)."""

    hybrid: RowStatistics
    llm: RowStatistics
    confidence_N: Array


def thresholds(confidence_N: Array) -> list[tuple[int, float]]:
    """Every number of answers that the LLM can write, ascending, each with a threshold: the middle between the highest
    confidence below it and the lowest above it; -inf for none, inf for all."""
    ordered = np.sort(confidence_N)
    found = [(0, -np.inf)]
    for number, (below, above) in enumerate(pairwise(ordered.tolist()), 1):
        if below < above:
            middle = below + (above - below) / 2
            found.append((number, middle if middle > below else above))
    return [*found, (len(ordered), np.inf)]


def mixed(scored: Scored, threshold: float) -> RowStatistics:
    """The statistics of the cascade's answers."""
    rewritten_N1 = (scored.confidence_N < threshold)[:, None]
    return RowStatistics(np.where(rewritten_N1, scored.llm.rows_NK, scored.hybrid.rows_NK), scored.llm.score)


def qualities(scored: Scored, numbers: Sequence[int]) -> Array:
    """The metric of the cascade for numbers of answers that the LLM writes, by sums over the rows."""
    order_N = np.argsort(scored.confidence_N, kind="stable")
    gained_NK = (scored.llm.rows_NK - scored.hybrid.rows_NK)[order_N]
    sums_NK = scored.hybrid.rows_NK.sum(0) + np.concatenate([np.zeros_like(gained_NK[:1]), gained_NK.cumsum(0)])
    return scored.llm.score(sums_NK[list(numbers)])


def calibrated(
    scored: Scored,
    requested: float,
    costs: Costs,
    *,
    names: tuple[str, str, str],
    resamples: int,
    seed: int,
    advance: Advance = lambda _: None,
) -> Calibration:
    """The lowest share of LLM answers that keeps the requested quality, and the curve over all shares.

    Args:
        requested: quality kept, above 0 and at most 1: the LLM alone keeps it.
        names: confidence, metric, signature.

    Raises:
        ValueError: the LLM's metric is not above 0, so that quality kept is undefined.
    """
    llm = scored.llm.corpus
    if not llm > 0:
        raise ValueError(f"the LLM's metric is {llm}")
    every = thresholds(scored.confidence_N)
    kept_of_every = qualities(scored, [number for number, _ in every]) / llm
    best = _first(kept_of_every >= requested - TIE)
    shown = _spread(len(every), best)
    resampled = bootstrap([*(mixed(scored, every[n][1]) for n in shown), scored.llm], resamples, seed, advance)
    kept_SR = np.stack(resampled[:-1]) / np.where(resampled[-1] > 0, resampled[-1], np.nan)
    kept_SR = kept_SR[:, np.isfinite(kept_SR).all(0)]
    curve = [_point(scored, every[n], kept_R, requested, costs)
             for n, kept_R in zip(shown, kept_SR, strict=True)]  # fmt: skip
    # of each resample the first point that keeps the quality; the last one does
    chosen_R = (kept_SR >= requested - TIE).argmax(0) if kept_SR.size else np.array([0, len(shown) - 1])
    low = int(np.quantile(chosen_R, (1 - LEVEL) / 2, method="lower"))
    high = int(np.quantile(chosen_R, (1 + LEVEL) / 2, method="higher"))
    return Calibration(
        threshold=every[best][1],
        confidence=names[0],
        metric=names[1],
        signature=names[2],
        requested=requested,
        chosen=curve[shown.index(best)],
        threshold_interval=(curve[low].threshold, curve[high].threshold),
        likely=next((point for point in curve if point.probability >= LEVEL), curve[-1]),
        rows=len(scored.confidence_N),
        resamples=resamples,
        seed=seed,
        costs=costs,
        curve=curve,
    )


def _first(holds_N: NDArray[np.bool_]) -> int:
    """Index of the first value that holds; the last index if none does."""
    return int(holds_N.argmax()) if holds_N.any() else len(holds_N) - 1


def _spread(count: int, chosen: int) -> list[int]:
    """At most `POINTS` indices of 0, 1, ..., count - 1, evenly spaced, ends included, and the chosen one."""
    spaced = np.linspace(0, count - 1, min(count, POINTS)).round().astype(int).tolist()
    return sorted({*spaced, chosen})


def _point(scored: Scored, at: tuple[int, float], kept_R: Array, requested: float, costs: Costs) -> Point:
    """The point of a number of LLM answers and its threshold; kept_R: quality kept on resamples where it is defined."""
    quality, share = mixed(scored, at[1]).corpus, at[0] / len(scored.confidence_N)
    low, high = interval(kept_R, LEVEL) if len(kept_R) else (None, None)
    ms = costs.hybrid_ms + share * costs.llm_ms
    probability = float((kept_R >= requested - TIE).mean()) if len(kept_R) else 0.0
    return Point(at[1], share, quality, quality / scored.llm.corpus, low, high, probability, ms, costs.llm_ms / ms)
