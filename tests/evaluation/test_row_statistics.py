"""The row statistics of a metric, against the metric itself on selected, duplicated and omitted texts."""

from __future__ import annotations

import random

import numpy as np
import pytest
from corpora import noisy, sentences
from sacrebleu.metrics import BLEU, CHRF

from llm2slm.evaluation.metrics.row_statistics import row_scores, row_statistics
from llm2slm.evaluation.metrics.scores import METRICS, of_texts, score
from llm2slm.types import UserError

REFERENCES = [*sentences(20, seed=1), "Ein Satz, mit Komma!", "two\nlines of text", "on and on and on it goes", "x"]
PREDICTIONS = [*noisy(REFERENCES[:20], 0.1, 2), "", "two\nlines of words", "on and on and on and on and on", "x y z"]


@pytest.mark.parametrize("name", of_texts(METRICS))
def test_sums_of_selected_rows_give_the_metric_of_the_selected_texts(name):
    """Rows drawn with replacement, as in a resample; one resample consists of a single row."""
    found, statistics = row_statistics(name, PREDICTIONS, REFERENCES)
    assert found == score([name], PREDICTIONS, REFERENCES)[name]
    rng, rows = random.Random(3), len(REFERENCES)
    drawn = [rng.choices(range(rows), k=size) for size in (rows, rows, 7, 2, 1)]
    sums = np.stack([statistics.rows_NK[rows].sum(0) for rows in drawn])
    expected = [score([name], [PREDICTIONS[i] for i in r], [REFERENCES[i] for i in r])[name].value for r in drawn]
    assert statistics.score(sums) == pytest.approx(expected, abs=1e-9)
    assert statistics.corpus == pytest.approx(found.value, abs=1e-9)
    assert len(set(np.round(expected, 6))) > 1


@pytest.mark.parametrize(("name", "metric"), [("bleu", BLEU(effective_order=True)), ("chrf", CHRF())])
def test_the_score_of_a_row_equals_that_of_the_sentence(name, metric):
    found = row_scores(name, row_statistics(name, PREDICTIONS, REFERENCES)[1])
    pairs = zip(PREDICTIONS, REFERENCES, strict=True)
    assert found == pytest.approx([metric.sentence_score(p, [r]).score for p, r in pairs], abs=1e-9)
    assert found[-3] > 0  # a short row has only the n-gram orders that fit into it


@pytest.mark.parametrize("name", ["rouge1", "rouge2", "rougeL", "rougeLsum", "exact_match"])
def test_a_mean_metric_is_the_mean_of_the_scores_of_the_rows(name):
    found, statistics = row_statistics(name, PREDICTIONS, REFERENCES)
    assert row_scores(name, statistics).mean() == pytest.approx(found.value)


def test_a_ratio_with_an_empty_reference_is_undefined():
    _, statistics = row_statistics("length_ratio", ["a b", "c"], ["", "d"])
    found = statistics.score(np.array([[2.0, 0.0], [3.0, 1.0]]))
    assert np.isnan(found[0]) and found[1] == 3


def test_texts_that_cannot_be_scored_are_reported():
    with pytest.raises(UserError, match="metric 'blue' is unknown"):
        row_statistics("blue", PREDICTIONS, REFERENCES)
    with pytest.raises(UserError, match="all 1 references are empty"):
        row_statistics("bleu", ["a"], [""])
