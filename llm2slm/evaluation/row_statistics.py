"""What each row adds to a metric, so that a resampled corpus is scored from sums instead of from texts.

BLEU and chrF: the n-gram counts that sacrebleu takes from each sentence, scored by sacrebleu itself. ROUGE and exact
match: the row's own score, for they are means. `metrics.py` stays the one that says what a metric is: on the rows as
they are, both agree, which `row_statistics` makes sure of.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from llm2slm.evaluation.metrics import ROUGE, score
from llm2slm.evaluation.significance import Array, RowStatistics
from llm2slm.runs import Score
from llm2slm.types import UserError

AGREEMENT = 1e-6
"""By how much the metric from sums may differ from that of `metrics.py`."""
UNRANKED = ("length_ratio",)
"""Metrics of which more is neither better nor worse, so that they put rows in no order."""


def row_statistics(name: str, predictions: Sequence[str], references: Sequence[str]) -> tuple[Score, RowStatistics]:
    """The metric as `metrics.py` has it, and what each row adds to it.

    Raises:
        UserError: unknown metric, nothing to score, or a metric that has no statistics by row.
    """
    found = score([name], predictions, references)[name]
    if name not in STATISTICS:
        raise UserError(f"metric {name!r} cannot be resampled; those that can: {', '.join(STATISTICS)}")
    statistics = STATISTICS[name](name, predictions, references)
    if not abs(statistics.corpus - found.value) <= AGREEMENT * max(1.0, abs(found.value)):
        raise RuntimeError(f"{name}: {statistics.corpus} from the rows' statistics, {found.value} from the texts")
    return found, statistics


def row_scores(name: str, statistics: RowStatistics) -> Array:
    """The metric of each row on its own (N). BLEU's is over the n-gram orders that the row has (effective order)."""
    if name == "bleu":
        return _scored(_bleu(effective_order=True))(statistics.rows_NK)
    return statistics.score(statistics.rows_NK)


def _bleu(effective_order: bool = False) -> Any:
    from sacrebleu.metrics import BLEU

    return BLEU(force=True, effective_order=effective_order)


def _chrf() -> Any:
    from sacrebleu.metrics import CHRF

    return CHRF()


def _scored(metric: Any) -> Callable[[Array], Array]:
    """sacrebleu's score of summed statistics, one resample after the other."""

    def score_sums(sums_RK: Array) -> Array:
        return np.array([metric._compute_score_from_stats(sums).score for sums in sums_RK.tolist()], dtype=np.float64)

    return score_sums


def _from_sacrebleu(metric: Any, predictions: Sequence[str], references: Sequence[str]) -> RowStatistics:
    rows = metric._extract_corpus_statistics(list(predictions), [list(references)])
    return RowStatistics(np.array(rows, dtype=np.float64), _scored(metric))


def _mean(values: Sequence[float]) -> RowStatistics:
    """Of a metric that is 100 times the mean over rows: each row adds its value, and one to the count."""
    return RowStatistics(np.stack([np.array(values, dtype=np.float64), np.ones(len(values))], axis=1), _ratio(100))


def _ratio(factor: float) -> Callable[[Array], Array]:
    """The first of two sums over the second; not finite where the second is 0."""

    def score_sums(sums_RK: Array) -> Array:
        whole = np.where(sums_RK[:, 1] == 0, np.nan, sums_RK[:, 1])
        found: Array = factor * sums_RK[:, 0] / whole
        return found

    return score_sums


def _rouge(name: str, predictions: Sequence[str], references: Sequence[str]) -> RowStatistics:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer([name], use_stemmer=True, split_summaries=False)
    pairs = zip(references, predictions, strict=True)
    return _mean([float(scorer.score(reference, prediction)[name].fmeasure) for reference, prediction in pairs])


def _exact_match(_name: str, predictions: Sequence[str], references: Sequence[str]) -> RowStatistics:
    return _mean([float(p.strip() == r.strip()) for p, r in zip(predictions, references, strict=True)])


def _length_ratio(_name: str, predictions: Sequence[str], references: Sequence[str]) -> RowStatistics:
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    words = Tokenizer13a()
    pairs = zip(predictions, references, strict=True)
    rows = [[float(len(words(text).split())) for text in pair] for pair in pairs]
    return RowStatistics(np.array(rows, dtype=np.float64), _ratio(1))


STATISTICS: dict[str, Callable[[str, Sequence[str], Sequence[str]], RowStatistics]] = {
    "bleu": lambda _name, predictions, references: _from_sacrebleu(_bleu(), predictions, references),
    "chrf": lambda _name, predictions, references: _from_sacrebleu(_chrf(), predictions, references),
    **dict.fromkeys(ROUGE, _rouge),
    "exact_match": _exact_match,
    "length_ratio": _length_ratio,
}
"""Every metric that can be resampled, by its name."""
