"""The threshold of a cascade, against a search over all thresholds with the scoring packages on the mixed texts."""

from __future__ import annotations

import random
from dataclasses import replace
from math import inf

import numpy as np
import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from llm2slm.evaluation.calibration import LEVEL, POINTS, Costs, Scored, calibrated, mixed, qualities, thresholds
from llm2slm.evaluation.compare.significance import RowStatistics, interval
from llm2slm.evaluation.metrics.row_statistics import row_statistics

COSTS = Costs(10.0, 80.0, 4, 20)
NAMES = ("mean", "bleu", "signature")
WORDS = [
    "the",
    "old",
    "man",
    "sees",
    "a",
    "small",
    "house",
    "near",
    "the",
    "green",
    "river",
    "and",
    "two",
    "dogs",
    "run",
]


def texts(rows: int, seed: int) -> tuple[list[str], list[str], list[str], np.ndarray]:
    """References, answers of a hybrid and of a better LLM, and confidences, some of them equal."""
    draw = random.Random(seed)
    references = [" ".join(draw.choices(WORDS, k=draw.randint(4, 12))) for _ in range(rows)]

    def changed(text: str, share: float) -> str:
        return " ".join(draw.choice(WORDS) if draw.random() < share else word for word in text.split())

    hybrid, llm = ([changed(text, share) for text in references] for share in (0.5, 0.15))
    confidence = np.array([round(-draw.random(), 1 if rows > 15 else 3) for _ in range(rows)])
    return references, hybrid, llm, confidence


def scored(metric: str, references: list[str], hybrid: list[str], llm: list[str], confidence: np.ndarray) -> Scored:
    both = (row_statistics(metric, answers, references, "en")[1] for answers in (hybrid, llm))
    return Scored(*both, confidence)


def corpus_bleu(answers: list[str], references: list[str]) -> float:
    return float(sacrebleu.corpus_bleu(answers, [references], force=True).score)


def mean_rouge(answers: list[str], references: list[str]) -> float:
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    pairs = zip(references, answers, strict=True)
    return 100 * float(np.mean([scorer.score(one, other)["rougeL"].fmeasure for one, other in pairs]))


@pytest.mark.parametrize(("metric", "score"), [("bleu", corpus_bleu), ("rougeL", mean_rouge)])
def test_the_curve_equals_the_scores_of_the_mixed_texts(metric, score):
    references, hybrid, llm, confidence = texts(40, 3)
    of = scored(metric, references, hybrid, llm, confidence)
    found = calibrated(of, 0.9, COSTS, names=NAMES, resamples=100, seed=1)
    assert len(found.curve) == len(set(confidence)) + 1  # rows of equal confidence have one system
    whole = score(llm, references)
    for point in found.curve:
        low = confidence < point.threshold
        answers = [llm[row] if low[row] else hybrid[row] for row in range(40)]
        assert point.share == low.mean()
        assert point.quality == pytest.approx(score(answers, references), abs=1e-9)
        assert point.kept == pytest.approx(point.quality / whole)
        assert point.ms_per_answer == pytest.approx(10 + 80 * point.share)
        assert point.speedup == pytest.approx(80 / (10 + 80 * point.share))
    assert (found.curve[0].threshold, found.curve[-1].threshold) == (-inf, inf)
    enough = [point for point in found.curve if point.kept >= 0.9]
    assert found.chosen == enough[0] and found.threshold == enough[0].threshold
    assert 0 < found.chosen.share < 1


def test_thresholds_of_four_rows_worked_out_by_hand():
    """The LLM is right on all four rows, the hybrid on rows 1 and 3, with confidences -0.1 and -0.3."""
    right = np.array([[1.0, 1], [0, 1], [1, 1], [0, 1]])
    hybrid = RowStatistics(right, lambda sums: sums[:, 0] / sums[:, 1])
    of = Scored(hybrid, replace(hybrid, rows_NK=np.ones((4, 2))), np.array([-0.1, -0.9, -0.3, -0.5]))
    assert thresholds(of.confidence_N) == [(0, -inf), *((n, pytest.approx(t)) for n, t in ((1, -0.7), (2, -0.4))),
                                           (3, pytest.approx(-0.2)), (4, inf)]  # fmt: skip
    assert qualities(of, range(5)).tolist() == [0.5, 0.75, 1, 1, 1]
    for requested, threshold, share in ((1.0, -0.4, 0.5), (0.75, -0.7, 0.25), (0.76, -0.4, 0.5), (0.5, -inf, 0)):
        found = calibrated(of, requested, COSTS, names=NAMES, resamples=100, seed=1)
        assert (found.threshold, found.chosen.share) == (pytest.approx(threshold), share)
    assert found.likely.probability >= LEVEL


def test_the_bootstrap_is_seeded_and_equals_that_of_resampled_texts():
    references, hybrid, llm, confidence = texts(12, 5)
    of = scored("bleu", references, hybrid, llm, confidence)
    first, again, other = (calibrated(of, 0.8, COSTS, names=NAMES, resamples=200, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert (first.chosen.low, first.chosen.high) != (other.chosen.low, other.chosen.high)
    low = confidence < first.threshold
    answers = [llm[row] if low[row] else hybrid[row] for row in range(12)]
    rng, kept, chosen = np.random.default_rng(1), [], []
    for _ in range(200):
        rows = rng.integers(12, size=12)
        sample = [references[row] for row in rows]
        whole = corpus_bleu([llm[row] for row in rows], sample)
        kept.append(corpus_bleu([answers[row] for row in rows], sample) / whole)
        each = [corpus_bleu([llm[row] if confidence[row] < point.threshold else hybrid[row] for row in rows], sample)
                for point in first.curve]  # fmt: skip
        chosen.append(next(n for n, value in enumerate(each) if value / whole >= 0.8 - 1e-9))
    assert (first.chosen.low, first.chosen.high) == pytest.approx(interval(np.array(kept)))
    assert first.chosen.probability == pytest.approx(np.mean([value >= 0.8 - 1e-9 for value in kept]))
    ordered = sorted(chosen)
    assert first.threshold_interval == (first.curve[ordered[4]].threshold, first.curve[ordered[195]].threshold)


def test_a_long_curve_is_thinned_and_contains_the_chosen_point():
    """A long curve has some of the points, the chosen one included."""
    references, hybrid, llm, _ = texts(900, 7)
    confidence = -np.random.default_rng(2).permutation(900) / 900
    of = scored("exact_match", references, hybrid, llm, confidence)
    found = calibrated(of, 0.43, COSTS, names=NAMES, resamples=100, seed=1)
    assert POINTS <= len(found.curve) <= POINTS + 1
    every = [mixed(of, threshold).corpus / of.llm.corpus for _, threshold in thresholds(confidence)]
    assert len(every) == 901
    assert found.chosen.share == next(n for n, kept in enumerate(every) if kept >= 0.43) / 900


def test_with_a_better_hybrid_no_response_is_rewritten():
    references, hybrid, llm, confidence = texts(20, 9)
    found = calibrated(scored("bleu", references, llm, hybrid, confidence), 1.0, COSTS, names=NAMES, resamples=100,
                       seed=1)  # fmt: skip
    assert (found.threshold, found.chosen.share) == (-inf, 0.0) and found.chosen.kept > 1


def test_an_llm_that_is_always_wrong_is_refused():
    of = scored("exact_match", ["a b", "c d"], ["a b", "x"], ["x", "y"], np.array([-1.0, -2.0]))
    with pytest.raises(ValueError, match=r"^the LLM's metric is 0.0$"):
        calibrated(of, 0.9, COSTS, names=NAMES, resamples=100, seed=1)


def test_equal_adjacent_and_infinite_confidences():
    """Adjacent floats without a number between them, and infinite confidences."""
    one = np.nextafter(-0.5, 0)
    assert thresholds(np.array([-0.5, one, -0.5])) == [(0, -inf), (2, one), (3, inf)]
    assert thresholds(np.array([-inf, -1.0])) == [(0, -inf), (1, -1.0), (2, inf)]
