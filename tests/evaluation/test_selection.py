"""Several results are ranked by their validation scores only."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
from rich.console import Console
from test_report import Page, read_number

from llm2slm.evaluation.report.report import render, terminal_table
from llm2slm.evaluation.report.selection import best_by_validation
from llm2slm.runs import Result, Score, Selection, System, plain

OVERRIDES = [{"seed": str(seed)} for seed in (1, 2, 3)]


def result(validation: float | None, test: float, metric: str = "val/bleu", mode: str = "max") -> dict[str, Any]:
    """A training with a validation score and a test score."""
    system = System("hybrid", "llm2slm", {"total": 5, "trainable": 2}, {"bleu": Score(test, "tok:13a", 100)})
    system.validation = {} if validation is None else {"loss": 1.25, "bleu": validation}
    chosen = Selection(metric, mode, validation, 400)
    return plain(Result("train", 1, "0" * 12, 1.0, [system], selection=chosen, device="a processor"))


def shown(*results: dict[str, Any]) -> tuple[str, str]:
    """The sentence at the top of the page, and the text in the terminal."""
    overrides = OVERRIDES[: len(results)]
    page, out = Page(render(results, "t", overrides)), io.StringIO()
    Console(file=out, width=200, color_system=None).print(terminal_table(results, 200, overrides))
    head = page.text[: page.text.index(f"{len(results)} runs, ")]
    return head, " ".join(out.getvalue().split())


@pytest.mark.parametrize(("mode", "best"), [("max", 2), ("min", 3)])
def test_the_best_run_is_chosen_by_validation_and_not_by_test(mode: str, best: int) -> None:
    validation = {1: 20.0, 2: 30.5, 3: 10.0}
    head, terminal = shown(*(result(value, 100 - value, mode=mode) for value in validation.values()))
    sentence = f"Best by validation: seed={best} (BLEU {validation[best]:.2f} at step 400)."
    assert sentence in head and sentence in terminal
    assert "Best" not in head.replace(sentence, "")


@pytest.mark.parametrize("lost", [None, {"selection": None}], ids=["the best checkpoint was lost", "earlier version"])
def test_without_a_validation_score_nothing_is_ranked(lost: dict[str, Any] | None) -> None:
    other = result(None, 99.0) if lost is None else result(50.0, 99.0) | lost
    head, terminal = shown(result(20.0, 80.0), other, result(30.0, 70.0))
    sentence = "Not ranked: no validation score of seed=2."
    assert sentence in head and sentence in terminal
    assert "Best" not in head and "Best" not in terminal


def test_a_result_without_systems_is_named_by_its_number() -> None:
    empty = result(None, 1.0) | {"systems": []}
    assert "Not ranked: no validation score of run 2." in shown(result(20.0, 80.0), empty)[0]


def test_scores_that_are_not_comparable_are_not_ranked() -> None:
    loss = result(1.5, 70.0, "val/loss", "min")
    assert "of different metrics, BLEU (max), loss (min)." in shown(result(20.0, 80.0), loss)[0]
    chinese = result(30.0, 70.0)
    chinese["systems"][0]["quality"]["bleu"]["signature"] = "tok:zh"
    assert "Not ranked: BLEU has different signatures." in shown(result(20.0, 80.0), chinese)[0]
    assert shown(loss, result(1.25, 60.0, "val/loss", "min"))[0].strip().endswith("seed=2 (loss 1.25 at step 400).")


def test_a_diverged_training_ranks_last() -> None:
    results = [result(value, 50.0, "val/loss", "min") for value in (math.nan, 2.5, math.inf)]
    assert best_by_validation(results, "abc") == (1, "")
    reason = "Not ranked: no validation loss is finite."
    assert best_by_validation([results[0], results[2]], "ac") == (None, reason)


def test_results_without_a_score_or_alone_need_no_ranking() -> None:
    timed = result(None, 0.0)
    timed["systems"][0]["quality"] = {}
    assert best_by_validation([timed, timed], "ab") == best_by_validation([result(1.0, 1.0)], "a") == (None, "")
    many = [result(None, 1.0)] * 6
    assert best_by_validation(many, "abcdef")[1] == "Not ranked: no validation score of a, b, c, d and 2 more."


def test_validation_scores_are_columns_before_the_test_scores() -> None:
    """In the terminal, only the scores that selected the runs."""
    out = io.StringIO()
    results = [result(20.0, 80.0), result(30.0, 70.0)]
    Console(file=out, width=200, color_system=None).print(terminal_table(results, 200))
    [head] = [" ".join(line.split()) for line in out.getvalue().splitlines() if "System" in line]
    assert head == "System Kind Parameters Trainable Validation BLEU BLEU"
    table = Page(render([result(20.0, 80.0), result(30.0, 70.0)], "t", OVERRIDES[:2])).tables["systems"]
    heads = [cell["text"] for cell in table[0]]
    assert heads[heads.index("Validation loss") :][:3] == ["Validation loss", "Validation BLEU", "BLEU"]
    for cells, bleu in zip(table[1:], (20.0, 30.0), strict=True):
        found = {cell["data-key"]: cell for cell in cells if "data-key" in cell}
        expected = {"validation/loss": 1.25, "validation/bleu": bleu, "quality/bleu": 100 - bleu}
        for key, value in expected.items():
            assert (float(found[key]["data-value"]), read_number(found[key]["text"])[0]) == (value, value)
