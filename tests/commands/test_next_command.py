"""The next command of every verb is valid, and names the output of the verb."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from llm2slm.cli.compose import Composer, runs_named
from llm2slm.cli.schema import SCHEMAS
from llm2slm.commands.next_command import next_command
from llm2slm.config import LLMConfig, ModelConfig, RunConfig
from llm2slm.types import Decoding

SET = {
    "train": {"model": ModelConfig(llm=LLMConfig(name="llm"))},
    "evaluate": {"run": "RUN"},
    "calibrate": {"run": "RUN"},
    "label": {},
    "encode": {},
    "benchmark": {"run": "RUN"},
    "demo": {"systems": {"slm": {}, "llm2slm": {}}},
    "generate": {"run": "RUN", "prompt": "x"},
    "judge": {"runs": ["A", "B"]},
    "export": {"run": "RUN", "out": "model"},
    "report": {"runs": ["A"]},
    "compare": {"runs": ["A", "B", "C"]},
    "tokenizer": {"out": "tok"},
    "costs": {"run": "RUN"},
}
EXPECTED = {
    "train": "llm2slm benchmark run='a b'",
    "evaluate": "llm2slm report 'a b'",
    "calibrate": "llm2slm evaluate run=RUN decoding=cascade 'cascade=a b'",
    "label": "llm2slm train data.labels=llm 'data.labels_from=a b'",
    "encode": "llm2slm train 'data.reps=a b/reps'",
    "benchmark": "llm2slm report RUN 'a b'",
    "demo": "llm2slm generate 'run=a b/llm2slm' prompt=TEXT",
    "generate": "llm2slm generate run=RUN input=FILE output=answers.jsonl",
    "judge": "llm2slm compare A B",
    "export": "llm2slm generate run=model prompt=TEXT",
    "report": "llm2slm compare A RUN",
    "compare": "llm2slm judge A B endpoint=URL model=NAME",
    "tokenizer": "llm2slm train model.slm.tokenizer=tok",
    "costs": "llm2slm benchmark run=RUN",
}


def write_run(folder: Path, source: str) -> None:
    """A run with predictions for a row."""
    folder.mkdir()
    row = {"source": source, "target": "t", "prediction": folder.name}
    (folder / "predictions.jsonl").write_text(json.dumps(row) + "\n")


@pytest.mark.parametrize("verb", list(SET))
def test_the_next_command_is_valid(verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "A", "x")
    config = SCHEMAS[verb](**SET[verb])
    found = next_command(verb, config, Path("a b"))
    assert found is not None
    assert shlex.split(found) == shlex.split(EXPECTED[verb])
    _, following, *overrides = shlex.split(found)
    composer = Composer(following)
    for override in runs_named(composer.schema, overrides):
        composer.prepare(override, sweeping=False)


def test_every_verb_with_an_output_has_a_next_command() -> None:
    assert set(SET) == set(SCHEMAS) - {"dashboard"}
    assert next_command("dashboard", SCHEMAS["dashboard"](), Path()) is None
    assert next_command("generate", SCHEMAS["generate"](run="RUN"), Path()) is None
    cascade = SCHEMAS["generate"](run="RUN", prompt="a", decoding=Decoding.cascade, cascade="C")
    given = ["run=RUN", "prompt=a", "decoding=cascade", "cascade=C", "++model.llm.chat=true", "stream=true"]
    repeated = "llm2slm generate run=RUN input=FILE output=answers.jsonl decoding=cascade cascade=C model.llm.chat=true"
    assert next_command("generate", cascade, Path(), given) == repeated


def test_costs_of_a_pair_are_followed_by_its_training() -> None:
    given = ["model/llm=t5_11b", "model.slm.layers=4", "hydra.run.dir=C", "response_tokens=[8]"]
    config = SCHEMAS["costs"]()
    assert next_command("costs", config, Path("C"), given) == "llm2slm train model/llm=t5_11b model.slm.layers=4"


def test_a_suggested_comparison_is_accepted_by_compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, source in (("a", "x"), ("b", "x"), ("v", "y")):
        write_run(tmp_path / name, source)
    (tmp_path / "bench").mkdir()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "predictions.jsonl").write_text("{")
    for runs, following in {
        ("a", "b"): "llm2slm compare a b",
        ("a", "bench"): "llm2slm compare a RUN",
        ("a", "b", "bench"): "llm2slm compare a b",
        ("bench",): None,
        ("a", "v"): None,
        ("a", "damaged"): None,
    }.items():
        assert next_command("report", SCHEMAS["report"](runs=list(runs)), Path()) == following
    assert next_command("report", SCHEMAS["report"](runs=["a", "b"], mixed=True), Path()) is None
    assert next_command("evaluate", RunConfig(run="a"), Path("b")) == "llm2slm compare a b"
    assert next_command("evaluate", RunConfig(run="a", split="validation"), Path("v")) == "llm2slm report v"
    assert next_command("evaluate", RunConfig(run="builtin/llm"), Path("b")) == "llm2slm report b"


def test_training_repeats_corpus_and_model(tmp_path: Path) -> None:
    config = RunConfig(run=str(tmp_path), model=ModelConfig(llm=LLMConfig(name="llm")))
    given = ["data=json", "data.train='a b.jsonl'", "task=instruction", "model.conditioning=kv", "trainer.threads=1"]
    repeated = """data=json 'data.train='"'"'a b.jsonl'"'"'' task=instruction model.conditioning=kv"""
    labeled = next_command("label", config, Path("L"), [*given, "split=train", "data.labels=gold"])
    assert labeled == f"llm2slm train {repeated} data.labels=llm data.labels_from=L"
    encoded = next_command("encode", config, Path("E"), given)
    assert encoded == f"llm2slm train {repeated} data.reps=E/reps"
    assert next_command("train", config, Path("E"), given) == f"llm2slm benchmark run={tmp_path}"
