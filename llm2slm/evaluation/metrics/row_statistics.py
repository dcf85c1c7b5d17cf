"""Per-row statistics of a metric as arrays, for which a resample of the rows is a matrix product."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llm2slm.evaluation.compare.significance import Array, RowStatistics
from llm2slm.evaluation.metrics.scores import METRICS, measure
from llm2slm.evaluation.metrics.tokenization import Languages
from llm2slm.runs import Score


def row_statistics(
    name: str, predictions: Sequence[str], references: Sequence[str], languages: Languages = None
) -> tuple[Score, RowStatistics]:
    """The score of a metric of texts, and its per-row statistics; languages as in `scores.measure`.

    Raises:
        UserError: unknown metric, or nothing to score.
    """
    measured = measure([name], predictions, references, languages)[name]

    def score_sums(sums_RK: Array) -> Array:
        return np.array([measured.value(sums) for sums in sums_RK.tolist()], dtype=np.float64)

    return measured.score(), RowStatistics(np.array(measured.counts, dtype=np.float64), score_sums)


def row_scores(name: str, statistics: RowStatistics) -> Array:
    """The score of each row (N), by the metric's `row_score` where it has one (BLEU: effective order)."""
    row_score = METRICS[name].row_score
    if row_score is None:
        return statistics.score(statistics.rows_NK)
    return np.array([row_score(sums) for sums in statistics.rows_NK.tolist()], dtype=np.float64)
