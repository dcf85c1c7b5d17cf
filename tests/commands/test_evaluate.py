"""`evaluate`: scores against the metric packages themselves, splits, plain models, and limits."""

from __future__ import annotations

import json

import pytest
import sacrebleu
from tiny_runs import SIZES, tiny_run

from llm2slm import runs
from llm2slm.cli import main
from llm2slm.commands.evaluate import run as evaluate
from llm2slm.commands.evaluate import tell_defaults
from llm2slm.config import RunConfig
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
    with pytest.raises(UserError, match=r"at most 8 .*data\.max_prompt_tokens.*data\.overlong=truncate"):
        evaluate(config, root / "long")
    config.data.overlong = Overlong.truncate
    [cut] = evaluate(config, root / "cut").systems
    assert cut.quality["chrf"].n == SIZES["test"]
    config.data.overlong = Overlong.drop
    [system] = evaluate(config, root / "dropped").systems
    kept = system.quality["chrf"].n
    assert 0 < kept == len(rows_of(root / "dropped")) < SIZES["test"]
    over = SIZES["test"] - kept
    for one, way, dropped in ((cut, "truncate", 0), (system, "drop", over)):
        told = one.notes["data"]["test"]
        assert (told["overlong_prompts"], told["overlong"], told["dropped"]) == (over, way, dropped)


def test_no_run_and_a_wrong_run_are_one_line(root, tmp_path):
    config = tiny_run(root)
    with pytest.raises(UserError, match="evaluate needs run=DIR"):
        evaluate(config, tmp_path)
    config.run = str(tmp_path / "nothing")
    with pytest.raises(UserError, match="nothing"):
        evaluate(config, tmp_path)


def test_a_misspelt_metric_is_told_before_model_and_data_are_loaded(root, tmp_path):
    config = tiny_run(root)
    config.task.metrics, config.run, config.data.test = ["chrf", "blue"], str(tmp_path / "nothing"), "nowhere.jsonl"
    with pytest.raises(UserError, match=r"^metric 'blue' is unknown; did you mean 'bleu'"):
        evaluate(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_corpus_that_nobody_named_is_told_apart_from_the_result(tmp_path, monkeypatch, capsys):
    """Fewer rows of it, or shorter answers, are no name for it."""
    monkeypatch.chdir(tmp_path)
    small = ["data.test_size=2", "task.max_new_tokens=2", "trainer.progress=false", "trainer.accelerator=cpu"]
    assert main(["evaluate", "run=builtin/llm", *small, "hydra.run.dir=out"]) == 0
    shown = capsys.readouterr()
    assert [line for line in shown.err.splitlines() if line.startswith("llm2slm: ")] == [
        "llm2slm: builtin/llm records no corpus: using data=builtin (data.corpus=translation) with "
        "task.prefix='translate English to German: '"
    ]
    assert "data.corpus" not in shown.out
    assert all(row["source"] for row in rows_of(tmp_path / "out"))


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [("data", "name", "samsum"), ("data", "corpus", "summarization"), ("task", "prefix", "")],
)
def test_a_corpus_or_prefix_that_was_named_is_not_told(capsys, section, key, value):
    config = RunConfig(run="someone/model")
    tell_defaults(config)
    assert "someone/model records no corpus" in capsys.readouterr().err
    setattr(getattr(config, section), key, value)
    tell_defaults(config)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("place", [".", "model"])
def test_a_run_that_records_its_corpus_is_not_told(tmp_path, capsys, place):
    runs.write_config(tmp_path, RunConfig())
    (tmp_path / "model").mkdir()
    tell_defaults(RunConfig(run=str(tmp_path / place)))
    assert capsys.readouterr() == ("", "")
