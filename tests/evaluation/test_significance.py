"""Intervals and tests against brute force: plain loops, all resamples enumerated, sacrebleu's tests, known truth.

Tolerances of Monte Carlo figures are four standard errors of the estimated share, unless stated otherwise.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from corpora import noisy, sentences
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.significance import PairedTest
from sampling import representatives

from llm2slm.evaluation.compare import significance
from llm2slm.evaluation.compare.significance import (
    RowStatistics,
    bootstrap,
    bootstrap_p,
    holm,
    interval,
    randomization_p,
)
from llm2slm.evaluation.metrics.row_statistics import row_statistics

SACREBLEU = {"bleu": lambda: BLEU(force=True), "chrf": CHRF}
SACREBLEU_SEED = 12345
"""The random generator of sacrebleu's tests."""


def statistics(name, predictions, references):
    return row_statistics(name, predictions, references)[1]


def mean_of(values):
    """The mean as a metric: each row adds its value."""
    rows = np.array(values, dtype=np.float64)[:, None]
    return RowStatistics(rows, lambda sums: sums[:, 0] / len(rows))


def corpus_score(name, predictions, references):
    """sacrebleu on texts."""
    return SACREBLEU[name]().corpus_score(predictions, [references]).score


def four_errors(share, draws):
    return 4 * math.sqrt(max(share * (1 - share), 1 / draws) / draws)


@pytest.fixture(scope="module")
def corpus():
    """200 references, and three systems with different shares of errors."""
    references = sentences(200, seed=1)
    shares = {"good": 0.20, "fair": 0.235, "bad": 0.5}
    return references, {name: noisy(references, share, 10 + n) for n, (name, share) in enumerate(shares.items())}


# Bootstrap


@pytest.mark.parametrize("name", SACREBLEU)
def test_bootstrap_equals_a_plain_loop_over_resampled_texts(name):
    references = sentences(12, seed=2)
    systems = [noisy(references, 0.2, 3), noisy(references, 0.5, 4)]
    found = bootstrap([statistics(name, answers, references) for answers in systems], 40, seed=5)
    drawn = np.random.default_rng(5).integers(12, size=(40, 12)).tolist()
    for scores, answers in zip(found, systems, strict=True):
        expected = [corpus_score(name, [answers[i] for i in rows], [references[i] for i in rows]) for rows in drawn]
        assert scores == pytest.approx(expected, abs=1e-9)
        assert np.std(scores) > 1


def test_bootstrap_draws_every_resample_equally_often():
    """All 4^4 resamples of four rows are equally likely."""
    references = sentences(4, seed=8)
    better, worse = noisy(references, 0.15, 1), noisy(references, 0.4, 2)
    exact = [
        [corpus_score("bleu", [answers[i] for i in rows], [references[i] for i in rows]) for answers in (better, worse)]
        for rows in itertools.product(range(4), repeat=4)
    ]
    differences = np.array([one - two for one, two in exact])
    share = float((differences <= 0).mean())
    assert 0.02 < share < 0.5  # the case is informative
    one, two = bootstrap([statistics("bleu", a, references) for a in (better, worse)], 20_000, seed=7)
    assert float((one - two <= 1e-9).mean()) == pytest.approx(share, abs=four_errors(share, 20_000))
    assert (one - two).mean() == pytest.approx(differences.mean(), abs=4 * differences.std() / math.sqrt(20_000))
    assert bootstrap_p(one - two) == pytest.approx(2 * share, abs=2 * four_errors(share, 20_000))
    assert set(np.round(one - two, 6)) <= set(np.round(differences, 6))


@pytest.mark.parametrize("name", SACREBLEU)
def test_the_interval_equals_that_of_sacrebleu(corpus, monkeypatch, name):
    """Same seed, same draws: sacrebleu gives their mean (in single precision), and half the width of the interval.

    It takes the 26th smallest and largest of 1,000; the package interpolates between the 25th and 26th: 0.02 apart.
    """
    monkeypatch.setenv("SACREBLEU_SEED", str(SACREBLEU_SEED))
    references, systems = corpus
    named = [(key, systems[key]) for key in ("good", "fair")]
    _, results = PairedTest(named, {name: SACREBLEU[name]()}, [references], "bs", 1000)()
    found = bootstrap([statistics(name, answers, references) for _, answers in named], 1000, SACREBLEU_SEED)
    [key] = [key for key in results if key != "System"]
    for scores, result in zip(found, results[key], strict=True):
        low, high = interval(scores)
        assert scores.mean() == pytest.approx(result.mean, abs=1e-4)
        assert (high - low) / 2 == pytest.approx(result.ci, abs=0.02)
        assert low < result.score < high


@pytest.mark.parametrize("name", SACREBLEU)
def test_bootstrap_p_is_twice_the_one_sided_p_of_sacrebleu(corpus, monkeypatch, name):
    """sacrebleu counts one tail of the differences, shifted to 0. Where they are far from 0 and symmetric, twice that
    is the two-sided p. The draws are the same; 0.02 allows for the skew of the differences."""
    monkeypatch.setenv("SACREBLEU_SEED", str(SACREBLEU_SEED))
    references, systems = corpus
    named = [(key, systems[key]) for key in ("good", "fair")]
    _, results = PairedTest(named, {name: SACREBLEU[name]()}, [references], "bs", 1000)()
    one, two = bootstrap([statistics(name, answers, references) for _, answers in named], 1000, SACREBLEU_SEED)
    [key] = [key for key in results if key != "System"]
    expected = 2 * results[key][1].p_value
    assert 0.02 < expected < 0.2  # neither certain nor impossible
    assert bootstrap_p(one - two) == pytest.approx(expected, abs=0.02)


def test_bootstrap_p_by_hand():
    nine_of_ten = np.array([1.0] * 9 + [-1.0])
    assert bootstrap_p(nine_of_ten) == pytest.approx(2 * 2 / 11)
    assert bootstrap_p(-nine_of_ten) == pytest.approx(2 * 2 / 11)
    assert bootstrap_p(np.array([1.0] * 10)) == pytest.approx(2 / 11)  # never 0
    assert bootstrap_p(np.zeros(10)) == 1
    assert bootstrap_p(np.array([np.nan, *nine_of_ten, np.inf])) == pytest.approx(2 * 2 / 11)


def test_p_is_below_the_threshold_if_and_only_if_the_interval_excludes_0():
    rng = np.random.default_rng(8)
    told = []
    for shift in np.linspace(0, 0.5, 60):
        values = rng.normal(shift, 1, size=50)
        [scores] = bootstrap([mean_of(values)], 1000, seed=9)
        low, high = interval(scores)
        p = bootstrap_p(scores)
        if abs(p - 0.05) > 4 / 1001:
            told.append(low > 0 or high < 0)
            assert told[-1] == (p < 0.05)
    assert {True, False} == set(told)


def test_the_interval_ignores_undefined_resamples():
    values = np.array([np.nan, *range(101), np.inf])
    assert interval(values, level=0.9) == pytest.approx((5, 95))


@pytest.mark.parametrize("paired", [False, True])
def test_intervals_contain_the_truth_at_their_nominal_rate(paired):
    """600 samples of 60 rows each: of one system's share of hits, 0.7; of the difference of two, 0.2.

    The percentile interval is a little narrow for so few rows; 0.915 to 0.965 leaves out one of level 0.9 or 0.99.
    """
    rng = np.random.default_rng(10)
    held = 0
    for sample in range(600):
        luck = rng.random(60)  # rows are hard or easy for both systems
        one, two = bootstrap([mean_of(luck < 0.7), mean_of((luck >= 0.2) & (luck < 0.7))], 200, seed=sample)
        values, truth = (one - two, 0.2) if paired else (one, 0.7)
        low, high = interval(values)
        held += low <= truth <= high
    assert 0.915 <= held / 600 <= 0.965


# Approximate randomization


def exact_randomization(score, one, two):
    """The share of all 2^n swaps whose difference is at least as large, whatever its sign."""
    observed = abs(score(one) - score(two))
    found = []
    for swaps in itertools.product([False, True], repeat=len(one)):
        first = [b if swap else a for a, b, swap in zip(one, two, swaps, strict=True)]
        second = [a if swap else b for a, b, swap in zip(one, two, swaps, strict=True)]
        found.append(abs(score(first) - score(second)) >= observed - 1e-9)
    return sum(found) / len(found)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_randomization_of_a_mean_equals_the_enumeration_of_all_swaps(seed):
    rng = np.random.default_rng(seed)
    one, two = rng.normal(0.4, 1, 10).tolist(), rng.normal(0, 1, 10).tolist()
    exact = exact_randomization(lambda values: sum(values) / 10, one, two)
    assert randomization_p(mean_of(one), mean_of(two), 20_000, seed) == pytest.approx(
        exact, abs=four_errors(exact, 20_000)
    )


def test_differences_equal_up_to_rounding_count_in_randomization():
    """Sums of tenths: many swaps give the observed difference, off by its last bit."""
    one, two = [0.8, 0.2, 0.1, 0.2], [0.4, 0.8, 0.4, 0.0]
    exact = exact_randomization(lambda values: sum(round(10 * value) for value in values), one, two)
    assert randomization_p(mean_of(one), mean_of(two), 20_000, 1) == pytest.approx(
        exact, abs=four_errors(exact, 20_000)
    )


def test_randomization_of_bleu_equals_the_enumeration_of_all_swaps():
    references = sentences(9, seed=11)
    one, two = noisy(references, 0.2, 1), noisy(references, 0.4, 2)
    exact = exact_randomization(lambda answers: corpus_score("bleu", answers, references), one, two)
    assert 0.02 < exact < 0.5
    found = randomization_p(statistics("bleu", one, references), statistics("bleu", two, references), 20_000, seed=3)
    assert found == pytest.approx(exact, abs=four_errors(exact, 20_000))


@pytest.mark.parametrize("name", SACREBLEU)
@pytest.mark.parametrize("other", representatives(["fair", "bad"], ["fair"]))
def test_randomization_equals_that_of_sacrebleu(corpus, monkeypatch, name, other):
    """Same seed, same tosses, no ties in these data: the same p up to rounding."""
    monkeypatch.setenv("SACREBLEU_SEED", str(SACREBLEU_SEED))
    references, systems = corpus
    named = [(key, systems[key]) for key in ("good", other)]
    _, results = PairedTest(named, {name: SACREBLEU[name]()}, [references], "ar", 2000)()
    [key] = [key for key in results if key != "System"]
    both = [statistics(name, answers, references) for _, answers in named]
    assert randomization_p(both[1], both[0], 2000, SACREBLEU_SEED) == pytest.approx(results[key][1].p_value, abs=1e-12)


@pytest.mark.parametrize("name", ["bleu", "chrf", "exact_match"])
def test_equal_systems_have_no_significant_difference(corpus, name):
    references, systems = corpus
    same = statistics(name, systems["good"], references)
    again = statistics(name, list(systems["good"]), references)
    assert randomization_p(same, again, 200, seed=1) == 1
    one, two = bootstrap([same, again], 200, seed=1)
    assert bootstrap_p(one - two) == 1


def test_tests_are_two_sided(corpus):
    references, systems = corpus
    one, two = (statistics("chrf", systems[key], references) for key in ("good", "fair"))
    assert randomization_p(one, two, 500, seed=1) == randomization_p(two, one, 500, seed=1) < 1
    a, b = bootstrap([one, two], 500, seed=1)
    assert bootstrap_p(a - b) == bootstrap_p(b - a) < 1


def test_tests_reject_at_their_nominal_rate_if_there_is_no_difference():
    """400 pairs of systems that are equally good: at 0.05, 8 to 34 rejections (four standard errors around 20)."""
    rng = np.random.default_rng(12)
    rejected = {"bootstrap": 0, "randomization": 0}
    for pair in range(400):
        hard = rng.normal(0, 1, 40)
        one, two = (mean_of(hard + rng.normal(0, 1, 40)) for _ in range(2))
        scores = bootstrap([one, two], 200, seed=pair)
        rejected["bootstrap"] += bootstrap_p(scores[0] - scores[1]) < 0.05
        rejected["randomization"] += randomization_p(one, two, 200, seed=pair) < 0.05
    assert 8 <= rejected["randomization"] <= 34
    assert 8 <= rejected["bootstrap"] <= 44  # a percentile interval of 40 rows is a little narrow


# Draws


def test_draws_depend_on_the_seed_only(corpus, monkeypatch):
    references, systems = corpus
    one, two = (statistics("bleu", systems[key], references) for key in ("good", "fair"))
    done = []

    def all_figures(seed):
        advanced = []
        scores = bootstrap([one, two], 300, seed, advanced.append)
        p = [randomization_p(one, two, 300, seed + n, advanced.append) for n in range(5)]
        assert sum(advanced) == 6 * 300
        done.append(len(advanced))
        return [scores[0].tolist(), scores[1].tolist(), *p]

    first = all_figures(1)
    assert all_figures(1) == first
    assert all_figures(2)[0] != first[0]
    assert bootstrap([one], 300, 1)[0].tolist() == first[0]  # independent of other resampled systems
    for chunk in (1, 33 * 200):  # in any number of chunks, which need not consist of whole words of random bits
        monkeypatch.setattr(significance, "CHUNK", chunk)
        assert all_figures(1) == first
        assert done[-1] > done[0]


# Holm


@pytest.mark.parametrize(
    ("plain", "adjusted"),
    [
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),  # 3 x 0.01, 2 x 0.03, and 0.04 raised to its predecessor
        ([0.04, 0.01], [0.04, 0.02]),
        ([0.02, 0.02, 0.02], [0.06, 0.06, 0.06]),
        ([0.6, 0.5], [1.0, 1.0]),
        ([0.7, 0.6, 0.001], [1.0, 1.0, 0.003]),  # 2 x 0.6 exceeds 1
        ([0.03], [0.03]),
        ([], []),
    ],
)
def test_holm_by_hand(plain, adjusted):
    assert holm(plain) == pytest.approx(adjusted)
