"""A sweep's runs by factor: means, spreads, seeds and the Pareto front, against NumPy and a brute-force search."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from llm2slm.evaluation.report.corpora import corpus_of, refuse_mixed, with_corpora
from llm2slm.evaluation.report.entries import entries
from llm2slm.evaluation.report.factors import latency_ms, named, pareto, sweep_of
from llm2slm.evaluation.report.report import render, seed_table
from llm2slm.evaluation.report.selection import best_by_validation
from llm2slm.types import UserError

MODES, RATES, SEEDS = ("add", "memory"), ("0.001", "0.01"), ("1", "2", "3")


def result(validation, bleu, ms=None, metric="val/loss", mode="min"):
    notes = {} if ms is None else {"generation": {"ms_per_answer": ms, "batch": 8}}
    system = {
        "name": "hybrid", "kind": "llm2slm", "parameters": {"total": 5, "trainable": 3}, "speed": [], "notes": notes,
        "quality": {"bleu": {"value": bleu, "signature": "s", "n": 9}}, "validation": {"loss": validation},
    }  # fmt: skip
    selection = {"metric": metric, "mode": mode, "value": validation, "step": 4, "split": "validation"}
    return {
        "verb": "train", "created": "2026-01-01", "command": "c", "git_commit": "", "device": "d", "seed": 1,
        "config_hash": "h", "wall_seconds": 1.0, "versions": {}, "schema": 1, "selection": selection,
        "systems": [system],
    }  # fmt: skip


def grid():
    """Overrides and results of 12 runs; validation loss and BLEU are drawn from a seeded generator."""
    draw = random.Random(0)
    overrides = [
        {"model.conditioning": mode, "optim.lr": rate, "seed": seed}
        for mode, rate, seed in itertools.product(MODES, RATES, SEEDS)
    ]
    return overrides, [result(draw.uniform(1, 3), draw.uniform(10, 90), draw.uniform(5, 50)) for _ in overrides]


def value(one):
    return one["selection"]["value"]


def test_the_effect_of_a_factor_is_the_mean_over_all_runs_with_its_value():
    overrides, results = grid()
    sweep = sweep_of(entries(results, overrides), results, overrides)
    assert [factor.key for factor in sweep.factors] == ["model.conditioning", "optim.lr"]  # seeds are grouped
    assert all(factor.balanced for factor in sweep.factors)
    for factor in sweep.factors:
        for level in factor.levels:
            own = [r for r, o in zip(results, overrides, strict=True) if o[factor.key] == level.name]
            losses, scores = [value(r) for r in own], [r["systems"][0]["quality"]["bleu"]["value"] for r in own]
            assert level.validation.n == 6
            np.testing.assert_allclose(level.validation.mean, np.mean(losses))
            np.testing.assert_allclose(level.validation.deviation, np.std(losses, ddof=1))
            np.testing.assert_allclose(level.test["bleu"].mean, np.mean(scores))
            assert level.best == min(losses)
    assert [run.validation for run in sweep.ranked] == sorted(value(r) for r in results)


def test_seeds_are_grouped_and_sorted_by_their_mean():
    overrides, results = grid()
    sweep = sweep_of(entries(results, overrides), results, overrides)
    means = {}
    for mode, rate in itertools.product(MODES, RATES):
        own = [value(r) for r, o in zip(results, overrides, strict=True)
               if (o["model.conditioning"], o["optim.lr"]) == (mode, rate)]  # fmt: skip
        means[f"conditioning={mode} · lr={rate}"] = np.mean(own), np.std(own, ddof=1)
    assert [group.name for group in sweep.groups] == sorted(means, key=lambda name: means[name][0])
    for group in sweep.groups:
        np.testing.assert_allclose((group.validation.mean, group.validation.deviation), means[group.name])
    table = seed_table(results, width=200, overrides=overrides)
    assert [str(cell) for cell in table.columns[1].cells] == ["3"] * 4
    without = [{k: v for k, v in own.items() if k != "seed"} for own in overrides[::3]]
    assert seed_table(results[::3], overrides=without) is None


def test_a_diverged_run_and_unbalanced_factors_are_stated():
    overrides, results = grid()
    results[0]["selection"]["value"] = float("inf")
    sweep = sweep_of(entries(results[:-1], overrides[:-1]), results[:-1], overrides[:-1])
    assert len(sweep.ranked) == 10 and len(sweep.runs) == 11
    add, memory = sweep.factors[0].levels
    assert (add.validation.n, len(add.runs), len(memory.runs)) == (5, 6, 5)
    assert not sweep.factors[0].balanced  # the last run is missing
    page = render(results[:-1], "t", overrides[:-1])
    assert "values run with different other factors" in page


def test_many_numbers_are_cut_into_quartiles():
    rates = [10 ** (-4 + n / 5) for n in range(16)]
    overrides = [{"optim.lr": str(rate)} for rate in rates]
    results = [result(1.0 + n, 50.0) for n in range(16)]
    [factor] = sweep_of(entries(results, overrides), results, overrides).factors
    assert [len(level.runs) for level in factor.levels] == [4, 4, 4, 4]
    assert [level.validation.mean for level in factor.levels] == [2.5, 6.5, 10.5, 14.5]
    assert factor.levels[0].name == "0.0001 – 0.000398"
    page = render(results, "t", overrides)
    assert "mean of each quartile of the values" in page


@pytest.mark.parametrize("lower", [True, False])
def test_the_pareto_front_equals_that_of_a_search_over_all_pairs(lower):
    draw = random.Random(1)
    for size in (1, 2, 5, 40):
        points = [(draw.randint(0, 12), draw.randint(0, 12)) for _ in range(size)]
        better = (lambda a, b: a <= b) if lower else (lambda a, b: a >= b)
        front = {
            n for n, (cost, quality) in enumerate(points)
            if not any(c <= cost and better(q, quality) and (c, q) != (cost, quality) for c, q in points)
        }  # fmt: skip
        found = pareto(points, lower=lower)
        assert set(found) == front
        assert [points[n][0] for n in found] == sorted(points[n][0] for n in found)


def test_the_page_draws_quality_against_latency_with_the_front():
    overrides, results = grid()
    page = render(results, "t", overrides)
    points = [(r["systems"][0]["notes"]["generation"]["ms_per_answer"], r["systems"][0]["quality"]["bleu"]["value"])
              for r in results]  # fmt: skip
    assert page.count("on the Pareto front") >= len(pareto(points, lower=False))
    assert "jobs that ran at the same time on one device slow each other down" in page
    assert latency_ms(entries([result(1.0, 2.0)])[0]) is None
    untimed = [result(value(r), 5.0) for r in results]
    assert "Quality against latency of the runs" not in render(untimed, "t", overrides)


def test_factors_are_named_by_their_keys():
    assert named({"model.slm.revision": "a", "model.llm.revision": "b", "optim.lr": "0.0012520653814999472"}) == (
        "model.slm.revision=a · model.llm.revision=b · lr=0.001252"
    )


CONFIGS = {
    "data: {name: multi30k, source: en, target: de}": "multi30k en→de",
    "data: {name: builtin, corpus: summarization}": "builtin summarization",
    "data: {name: json, test: a/test.jsonl}": "json a/test.jsonl",
    "data: {name: json, test: a/test.jsonl, validation: v.csv}\nsplit: validation": "json v.csv (validation)",
    "data: {name: hub, path: me/c, subset: x}": "hub me/c x",
    "data: {name: mixture, parts: [{name: xsum}, {name: samsum}]}": "xsum + samsum",
    "": "",
    "- [": "",
}


@pytest.mark.parametrize(("text", "name"), CONFIGS.items())
def test_the_corpus_of_a_run_is_named(text, name):
    assert corpus_of(text) == name


def test_scores_of_another_split_belong_to_another_corpus():
    """Of `calibrate`, which scores the validation split for every value of `split`."""
    text = "data: {name: builtin, corpus: translation}\nsplit: test"
    evaluated, calibrated, timed = result(1.0, 20.0), result(2.0, 30.0), result(3.0, 1.0)
    for each, split in ((evaluated, "test"), (calibrated, "validation")):
        each["systems"][0].setdefault("notes", {})["split"] = split
    timed["systems"][0]["quality"] = {}
    marked, found = with_corpora([evaluated, calibrated, timed], [text] * 3)
    assert found == {"builtin translation": [0, 2], "builtin translation (validation)": [1]}
    assert [each["corpus"] for each in marked] == [*found, "builtin translation"]
    message = r"of 2 corpora \(builtin translation: a; builtin translation \(validation\): b"
    with pytest.raises(UserError, match=message):
        refuse_mixed(found, ["a", "b", "c"])


def test_results_of_several_corpora_are_refused_or_not_ranked():
    results = [result(1.0, 20.0), result(2.0, 30.0), result(3.0, 1.0)]
    one, other, *_ = CONFIGS
    marked, found = with_corpora(results, [one, other, ""])
    assert found == {"multi30k en→de": [0], "builtin summarization": [1]}
    message = r"^runs: of 2 corpora \(multi30k en→de: a; builtin summarization: b\), whose scores do not .*mixed=true"
    with pytest.raises(UserError, match=message):
        refuse_mixed(found, ["a", "b", "c"])
    chosen, reason = best_by_validation(marked, ["a", "b", "c"])
    assert chosen is None
    assert reason == "Not ranked: the runs are of different corpora, multi30k en→de, builtin summarization."
    same, found = with_corpora(results, [one, one, ""])
    refuse_mixed(found, ["a", "b", "c"])
    assert same == results and best_by_validation(same, ["a", "b", "c"])[0] == 0
