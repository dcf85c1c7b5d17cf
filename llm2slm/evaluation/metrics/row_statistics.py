"""What each row adds to a metric (`metrics.measure` says it), as arrays that a resample is a matrix product of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llm2slm.evaluation.compare.significance import Array, RowStatistics
from llm2slm.evaluation.metrics.scores import METRICS, measure
from llm2slm.evaluation.metrics.tokenization import Languages
from llm2slm.runs import Score

STATISTICS = METRICS
"""Every metric that can be resampled, by its name."""
UNRANKED = ("length_ratio",)
"""Metrics of which more is neither better nor worse, so that they put rows in no order."""


def row_statistics(
    name: str, predictions: Sequence[str], references: Sequence[str], languages: Languages = None
) -> tuple[Score, RowStatistics]:
    """The metric, and what each row adds to it; the rows' languages as in `metrics.measure`.

    Raises:
        UserError: unknown metric, or nothing to score.
    """
    measured = measure([name], predictions, references, languages)[name]

    def score_sums(sums_RK: Array) -> Array:
        return np.array([measured.value(sums) for sums in sums_RK.tolist()], dtype=np.float64)

    return measured.score(), RowStatistics(np.array(measured.counts, dtype=np.float64), score_sums)


def row_scores(name: str, statistics: RowStatistics) -> Array:
    """The metric of each row on its own (N). BLEU's is over the n-gram orders that the row has (effective order)."""
    if name != "bleu":
        return statistics.score(statistics.rows_NK)
    from sacrebleu.metrics import BLEU

    metric = BLEU(force=True, effective_order=True)
    rows = statistics.rows_NK.tolist()
    return np.array([metric._compute_score_from_stats(sums).score for sums in rows], dtype=np.float64)
