"""A metric is one entry: a toy metric added to the registry is used wherever metrics are, with no other change."""

from __future__ import annotations

import json

import pytest
from tiny_runs import curve, tiny_run

from llm2slm import runs
from llm2slm.cli import main
from llm2slm.commands.evaluate import run as evaluate
from llm2slm.commands.train import run as train
from llm2slm.evaluation.metrics.metric import Measured, Metric
from llm2slm.evaluation.metrics.scores import METRICS, check, measure
from llm2slm.types import UserError


def long_words(_name, predictions, references, _how):
    """Missing and superfluous characters of the predictions, over the characters of the references."""
    counts = [(abs(len(p) - len(r)), len(r)) for p, r in zip(predictions, references, strict=True)]
    return Measured(counts, lambda sums: sums[0] / sums[1], "toy: difference of lengths")


def expected(folder):
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    return sum(abs(len(r["prediction"]) - len(r["target"])) for r in rows) / sum(len(r["target"]) for r in rows)


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setitem(METRICS, "toy", Metric("toy", "Toy (title)", long_words, lower_is_better=True))


def test_a_registered_metric_is_scored_logged_selected_compared_and_shown(toy, tmp_path, capsys):
    config = tiny_run(tmp_path)
    config.task.metrics, config.callbacks.monitor = ["toy", "chrf"], "val/toy"
    run = tmp_path / "run"
    result = train(config, run)
    score = result.systems[0].quality["toy"]
    assert (score.value, score.n) == (pytest.approx(expected(run)), 6)
    logged = [float(row["val/toy"]) for row in curve(run) if row["val/toy"]]
    assert len(logged) == 3
    assert runs.read_result(run)["selection"] | {"step": 0} == {
        "metric": "val/toy", "mode": "min", "split": "validation", "value": min(logged), "step": 0,
    }  # fmt: skip
    assert "Toy (title)" in capsys.readouterr().out
    again = tiny_run(tmp_path)
    again.run, again.task.metrics = str(run), ["toy"]
    assert evaluate(again, tmp_path / "evaluated").systems[0].quality["toy"] == score
    assert "Toy (title)" in capsys.readouterr().out

    config = tiny_run(tmp_path, kind="slm")
    config.task.metrics = ["toy"]
    train(config, tmp_path / "slm")
    assert main(["compare", str(run), str(tmp_path / "slm"), f"out={tmp_path}/compared", "metrics=[toy]"]) == 0
    [first, second] = json.loads((tmp_path / "compared/compare.json").read_text())["systems"]
    for system, folder in ((first, run), (second, tmp_path / "slm")):
        assert system["quality"]["toy"]["value"] == pytest.approx(expected(folder))
        assert system["compared"]["toy"]["low"] <= expected(folder) <= system["compared"]["toy"]["high"]
        assert system["compared"]["toy"]["kept"] is None
    assert "Toy (title)" in capsys.readouterr().out
    assert main(["report", str(run), str(tmp_path / "slm"), f"out={tmp_path}/report"]) == 0
    page = (tmp_path / "report/report.html").read_text()
    assert "Toy (title)" in page


def test_a_metric_is_found_under_its_registered_name_only(toy):
    check(["toy"])
    with pytest.raises(UserError, match=r"^metric 'toi' is unknown; did you mean 'toy'\?"):
        check(["toi"])
    with pytest.raises(UserError, match="perplexity: needs a model"):
        measure(["perplexity"], ["a"], ["a"])
    with pytest.raises(ValueError, match="either texts or with_model"):
        Metric("none", "None")
