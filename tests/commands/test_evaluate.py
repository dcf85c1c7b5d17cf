"""`evaluate`: scores against the metric packages themselves, splits, plain models, and limits."""

from __future__ import annotations

import json

import pytest
import sacrebleu
from tiny_runs import SIZES, tiny_run

from llm2slm.commands.evaluate import run as evaluate
from llm2slm.types import Overlong, UserError


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("evaluate")


def rows_of(folder):
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_plain_model_is_scored_on_the_split_asked_for(root, split):
    config = tiny_run(root)
    config.run, config.split = config.model.llm.name, split
    config.task.metrics = ["chrf", "bleu"]
    result = evaluate(config, root / split)
    rows = rows_of(root / split)
    wanted = [json.loads(line) for line in (root / "rows" / f"{split}.jsonl").read_text().splitlines()]
    assert [(r["source"], r["target"]) for r in rows] == [(w["source"], w["target"]) for w in wanted]
    answers, targets = [r["prediction"] for r in rows], [[r["target"] for r in rows]]
    quality = result.systems[0].quality
    assert quality["chrf"].value == pytest.approx(sacrebleu.corpus_chrf(answers, targets).score)
    assert quality["bleu"].value == pytest.approx(sacrebleu.corpus_bleu(answers, targets).score)
    assert quality["chrf"].n == SIZES[split]
    stored = json.loads((root / split / "result.json").read_text())
    assert (stored["verb"], stored["systems"][0]["kind"]) == ("evaluate", "llm")


def test_the_limits_are_those_of_the_configuration(root):
    """What the message says to set must be what helps."""
    config = tiny_run(root)
    config.run, config.data.max_prompt_tokens = config.model.llm.name, 8
    with pytest.raises(UserError, match=r"max_prompt_tokens=8.*data\.overlong=truncate"):
        evaluate(config, root / "long")
    config.data.overlong = Overlong.truncate
    assert evaluate(config, root / "cut").systems[0].quality["chrf"].n == SIZES["test"]
    config.data.overlong = Overlong.drop
    kept = evaluate(config, root / "dropped").systems[0].quality["chrf"].n
    assert 0 < kept == len(rows_of(root / "dropped")) < SIZES["test"]


def test_no_run_and_a_wrong_run_are_one_line(root, tmp_path):
    config = tiny_run(root)
    with pytest.raises(UserError, match="evaluate needs run=DIR"):
        evaluate(config, tmp_path)
    config.run = str(tmp_path / "nothing")
    with pytest.raises(UserError, match="nothing"):
        evaluate(config, tmp_path)
