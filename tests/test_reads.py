"""Keys that are set but not read: the table contains every key, and each is reported in modes that do not read it."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import mistake, replace_command, without_next
from sampling import first_few, representatives

from llm2slm import runs
from llm2slm.cli import main
from llm2slm.cli.given import check_read, value
from llm2slm.cli.reads import CORPUS, PART, REFUSED, RUN_KEYS
from llm2slm.cli.reads_verbs import TABLES, leaves
from llm2slm.cli.schema import SCHEMAS
from llm2slm.commands.deferred_warnings import show_held
from llm2slm.config import CorpusConfig, JudgeConfig, PartConfig, RunConfig
from llm2slm.types import UserError

HEAD = "llm2slm: warning: given and not read by "


@pytest.mark.parametrize("schema", list(dict.fromkeys(SCHEMAS.values())), ids=lambda schema: schema.__name__)
def test_every_key_has_a_row(schema: type) -> None:
    assert set(TABLES[schema]) == set(leaves(schema))


def test_every_field_of_a_corpus_and_of_a_part_has_a_row() -> None:
    assert set(CORPUS) == {field.name for field in dataclasses.fields(CorpusConfig)}
    assert set(PART) == {field.name for field in dataclasses.fields(PartConfig)}


def test_every_verb_in_the_table_exists_and_every_key_is_read_by_some_verb() -> None:
    for schema, table in TABLES.items():
        verbs = {verb for verb, own in SCHEMAS.items() if own is schema}
        if schema is RunConfig:
            verbs |= {"tokenizer"}
        for name, row in table.items():
            read_by = {verb for each in row for verb in each.verbs}
            assert read_by and (schema.__name__ in ("TokenizerConfig", "CostsConfig") or read_by <= verbs), name
    assert {name for _, name in REFUSED} <= set(RUN_KEYS)


def warned(calls: Any, capsys: Any, *arguments: str) -> str:
    """The warning on a command's keys; "" for none."""
    before = len(calls)
    assert main(list(arguments)) == 0
    assert len(calls) == before + 1
    shown = without_next(capsys.readouterr().err)
    assert not shown or (shown.startswith(f"{HEAD}{arguments[0]}: ") and shown.count("\n") == 1), shown
    return shown.removeprefix(f"{HEAD}{arguments[0]}: ").rstrip("\n")


NOT_READ = {
    "cross_every": (
        ["train", "model.cross_every=2"],
        "model.cross_every=2 (read with model.kind=llm2slm and model.conditioning=cross_attention)",
    ),
    "projector lr": (
        ["train", "model=slm", "optim.projector_lr=0.1"],
        "optim.projector_lr=0.1 (read with model.kind=llm2slm)",
    ),
    "the LLM of an SLM": (
        ["train", "model=slm", "model.llm.chat=true"],
        "model.llm.chat=true (read with model.kind=llm2slm or llm, or optim.distill)",
    ),
    "the SLM of an LLM": (
        ["train", "model=llm", "model.slm.tune=lora"],
        "model.slm.tune=lora (read with model.kind=llm2slm or slm)",
    ),
    "pool": (["train", "model=slm", "model.pool=0.5"], "model.pool=0.5 (read with model.kind=llm2slm)"),
    "projector": (
        ["train", "model=llm", "model.projector.norm=false"],
        "model.projector.norm=false (read with model.kind=llm2slm and a conditioning other than kv)",
    ),
    "llm.tune": (["train", "model.llm.tune=lora"], "model.llm.tune=lora (read with model.kind=llm)"),
    "peft": (
        ["train", "model.slm.peft={r: 8}"],
        "model.slm.peft={r: 8} (read with model.kind=llm2slm or slm and model.slm.tune=lora, prompt or prefix)",
    ),
    "revision of a folder": (
        ["train", "model.slm.name=.", "model.slm.revision=main"],
        "model.slm.revision=main (read with model.kind=llm2slm or slm and the name of a repository)",
    ),
    "corpus": (
        ["train", "data=json", "data.corpus=summarization"],
        "data.corpus=summarization (read with data=builtin)",
    ),
    "root": (["train", "data=json", "data.root=DIR"], "data.root=DIR (read with a known corpus or data=mixture)"),
    "path": (["train", "data=json", "data.path=DIR"], "data.path=DIR (read with data=hub or a known corpus)"),
    "train": (["train", "data.train=FILE"], "data.train=FILE (read with data=json, data=hub or a known corpus)"),
    "subset": (
        ["train", "data=multi30k", "data.root=DIR", "data.subset=de"],
        "data.subset=de (read with data=hub, or a known corpus without data.root)",
    ),
    "parts": (["train", "data.parts=[{name: samsum}]"], "data.parts=[{"),
    "a part's": (
        ["train", "data=mixture", "data.parts=[{name: json, root: DIR}]"],
        "data.parts[0].root=DIR (read with a known corpus or data=mixture)",
    ),
    "labels_from": (["train", "data.labels_from=labels"], "data.labels_from=labels (read with data.labels=llm or mix)"),
    "labels_share": (
        ["train", "data.labels=llm", "data.labels_from=x", "data.labels_share=0.3"],
        "data.labels_share=0.3 (read with data.labels=mix)",
    ),
    "reps": (["train", "model=slm", "data.reps=nowhere"], "data.reps=nowhere (read with model.kind=llm2slm)"),
    "buffer": (["train", "data.buffer=5"], "data.buffer=5 (read with data.streaming=true)"),
    "final lr": (
        ["train", "optim.schedule=constant", "optim.final_lr=0.1"],
        "optim.final_lr=0.1 (read with optim.schedule=cosine or linear)",
    ),
    "distill": (
        ["train", "optim.distill_temperature=2"],
        "optim.distill_temperature=2.0 (read with optim.distill above 0)",
    ),
    "min_delta": (["train", "callbacks.min_delta=0.1"], "callbacks.min_delta=0.1 (read with callbacks.patience)"),
    "project": (["train", "logger.project=mine"], "logger.project=mine (read with logger.name=wandb or mlflow)"),
    "systems": (["train", "systems.a=DIR"], "systems={a: DIR} (read by demo, benchmark)"),
    "split": (["train", "split=validation"], "split=validation (read by evaluate, label, encode)"),
    "encode of train": (["train", "encode.batch_tokens=5"], "encode.batch_tokens=5 (read by encode)"),
    "trainer of evaluate": (
        ["evaluate", "run=LLM", "trainer.max_steps=5"],
        "trainer.max_steps=5 (read by train, demo)",
    ),
    "mode of another logger": (
        ["label", "logger=mlflow", "logger.mode=online"],
        "logger.mode=online (read with logger.name=wandb)",
    ),
    "samples of csv": (["report", "RUN", "logger.samples=3"], "logger.samples=3 (read with a logger other than csv)"),
    "temperature": (["label", "label.temperature=2"], "label.temperature=2.0 (read with label.do_sample=true)"),
    "another split": (["evaluate", "run=LLM", "data.train_size=5"], "data.train_size=5 (read with split=train)"),
    "metrics": (["encode", "task.metrics=[bleu]"], "task.metrics=[bleu] (read by train, demo, evaluate, label)"),
    "llm without run": (["benchmark", "llm=DIR"], "llm=DIR (read with run=)"),
    "demo": (["demo", "optim.lr=0.1"], "optim.lr=0.1 (each of the systems slm, llm2slm sets it)"),
    "tokenizer": (["tokenizer", "data.batch_tokens=9"], "data.batch_tokens=9 (read by train, demo)"),
    "field": (["generate", "run=LLM", "prompt=a", "field=x"], "field=x (read with input=FILE)"),
    "top_p": (["generate", "run=LLM", "top_p=0.5"], "top_p=0.5 (read with do_sample=true)"),
    "revision of a folder that answers": (
        ["generate", "run=.", "prompt=a", "model.llm.revision=main"],
        "model.llm.revision=main (read with the name of a repository)",
    ),
    "revision of a folder that judges": (
        ["judge", "a", "local=.", "revision=main"],
        "revision=main (read with the name of a repository)",
    ),
    "private": (["export", "run=DIR", "private=true"], "private=true (read with push=REPOSITORY)"),
    "with an experiment": (
        ["encode", "experiment=samsum", "data.batch_tokens=9"],
        "data.batch_tokens=9 (read by train, demo)",
    ),
    "a group with an experiment": (
        ["label", "experiment=builtin_llm", "callbacks.patience=3"],
        "callbacks.patience=3 (read by train, demo)",
    ),
    "two": (
        ["train", "data.buffer=5", "split=train"],
        "data.buffer=5 (read with data.streaming=true); split=train (read by evaluate, label, encode)",
    ),
}


@pytest.mark.parametrize(("arguments", "said"), first_few(NOT_READ.values(), 10), ids=list(NOT_READ))
def test_unread_keys_are_reported(calls: Any, capsys: Any, arguments: list[str], said: str) -> None:
    found = warned(calls, capsys, *arguments)
    assert found == said or (said.endswith("[{") and found.startswith(said))


READ = [
    ["train", "model.conditioning=cross_attention", "model/slm=gpt2_mini", "model.cross_every=2"],
    ["train", "model=slm", "optim.distill=0.5", "model.llm.chat=true", "optim.distill_temperature=2"],
    ["train", "model=slm", "model.llm.name=some/llm", "model.llm.revision=abc"],  # the SLM shares its tokenizer
    ["train", "model=llm", "model.llm.tune=lora", "model.llm.peft={r: 4}"],
    ["train", "model=slm"],
    ["train", "model=llm"],
    ["train", "trainer=cpu"],
    ["train", "trainer=debug"],
    ["train", "data=json", "data.train=a", "data.validation=b", "data.test=c", "data.source=x", "data.target=y"],
    ["train", "data=hub", "data.path=me/data", "data.subset=a", "data.revision=b", "data.train=train[:5]"],
    [
        "train",
        "data=mixture",
        "data.root=DIR",
        "data.parts=[{name: samsum, weight: 2}, {name: builtin, corpus: summarization}]",
    ],
    ["train", "data.streaming=true", "data.buffer=5"],
    ["train", "logger=wandb", "logger.project=mine"],
    ["evaluate", "run=LLM", "model.llm.chat=true", "model.llm.prefix=x ", "data.test_size=5", "task.num_beams=2"],
    ["evaluate", "run=LLM", "split=train", "data.train_size=5", "trainer=cpu"],
    ["label", "model.llm.chat=true", "label.do_sample=true", "label.temperature=2", "data.train_size=4"],
    [
        "benchmark",
        "run=RUN",
        "llm=DIR",
        "systems.a=DIR",
        "benchmark.prompt_tokens=[5]",
        "benchmark.response_tokens=[5]",
    ],
    ["encode", "encode.batch_tokens=5", "data.train_size=5", "trainer.threads=1"],
    ["demo", "optim.warmup_steps=3", "trainer.max_steps=3", "model.cross_every=1", "data.test_size=5"],
    ["tokenizer", "data=json", "data.train=x", "vocab_size=300"],
    ["generate", "run=x", "model.llm.chat=true"],
    ["generate", "run=some/llm", "model.llm.revision=main"],
    ["judge", "a", "local=some/llm", "revision=main"],
    ["judge", "a", "endpoint=http://localhost:8000/v1", "revision=main"],  # the command refuses it
    ["train", "experiment=samsum", "data.root=DIR"],
    # an experiment may be used by several verbs
    ["encode", "experiment=samsum", "data.root=DIR"],
    ["demo", "experiment=multi30k_ende"],
    ["train", "experiment=pretrain", "model=llm"],
    ["encode", "experiment=conditioning", "model.conditioning=cross_attention"],
    ["train", "experiment=alpaca", "model=slm"],
    ["train", "experiment=builtin_llm"],
]


@pytest.mark.parametrize("arguments", first_few(READ, 7), ids=" ".join)
def test_read_keys_are_not_reported(calls: Any, capsys: Any, arguments: list[str]) -> None:
    assert warned(calls, capsys, *arguments) == ""


@pytest.mark.parametrize("verb", representatives(list(SCHEMAS), ["train", "evaluate", "generate"]))
def test_nothing_is_reported_if_nothing_is_set(calls: Any, capsys: Any, verb: str) -> None:
    assert warned(calls, capsys, verb) == ""


def test_unread_keys_of_a_sweep_are_reported(calls: Any, capsys: Any) -> None:
    assert (
        main(["train", "-m", "hydra/launcher=basic", "model.conditioning=add,cross_attention", "model.cross_every=2"])
        == 0
    )
    assert len(calls) == 2 and capsys.readouterr().err.count("model.cross_every=2 (read with") == 1


def test_a_mistake_is_reported_on_one_line_without_warnings_on_keys(calls: Any, capsys: Any, monkeypatch: Any) -> None:
    def refuse(config: Any, folder: Path) -> None:
        raise UserError("the tokenizer is missing")

    replace_command(monkeypatch, "train", refuse)
    assert main(["train", "data.buffer=5"]) == 2
    assert mistake(capsys) == "the tokenizer is missing"
    assert main(["train", "data.buffer=5", "optim.lr=0"]) == 2
    assert mistake(capsys) == "optim.lr=0.0: must be above 0"
    assert warned(calls, capsys, "label", "trainer.max_steps=5") == "trainer.max_steps=5 (read by train, demo)"


def test_warnings_on_keys_are_printed_once_when_the_work_starts(calls: Any, capsys: Any, monkeypatch: Any) -> None:
    def work(config: Any, folder: Path) -> None:
        print("checked", file=sys.stderr)
        show_held()
        raise UserError("the disk is full")

    replace_command(monkeypatch, "train", work)
    assert main(["train", "data.buffer=5"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["checked", f"{HEAD}train: data.buffer=5 (read with data.streaming=true)",
                     "llm2slm: error: the disk is full"]  # fmt: skip


NAMES = [[verb, "run=RUN"] for verb in ("encode", "demo")]
NAMES += [[verb, "run=LLM", "model.llm.name=x"] for verb in ("evaluate", "label", "benchmark")]
NAMES += [[verb, "data.train=rows.jsonl"] for verb in ("train", "demo")]


@pytest.mark.parametrize("arguments", NAMES, ids=" ".join)
def test_an_unread_key_of_model_or_training_data_is_refused(calls: Any, capsys: Any, arguments: list[str]) -> None:
    assert main(arguments) == 2
    said = mistake(capsys)
    assert said.startswith(f"{arguments[-1]}: not read by {arguments[0]} here") and said.endswith("; leave it out")
    assert calls == []


def test_recorded_keys_of_a_run_are_not_reported(calls: Any, capsys: Any) -> None:
    recorded = RunConfig(seed=9)
    recorded.optim.lr, recorded.model.cross_every, recorded.data.buffer = 0.5, 3, 7
    runs.write_config(Path("run"), recorded)
    assert warned(calls, capsys, "evaluate", "run=run", "split=validation") == ""
    assert warned(calls, capsys, "evaluate", "run=run", "optim.weight_decay=0.5") == (
        "optim.weight_decay=0.5 (read by train, demo)"
    )
    assert calls[-1][0].data.buffer == 7


def test_the_llm_of_an_slm_system_is_prompted_as_configured(calls: Any, capsys: Any) -> None:
    recorded = RunConfig()
    recorded.model.kind = recorded.model.kind.slm
    runs.write_config(Path("run"), recorded)
    assert main(["benchmark", "run=run", "llm=LLM", "model.llm.chat=true"]) == 0
    assert calls[-1][0].model.llm.chat is True
    capsys.readouterr()
    assert main(["benchmark", "run=run", "model.llm.chat=true"]) == 2
    assert mistake(capsys).startswith("model.llm.chat=True: the model of run=run was trained with False")


def test_a_value_is_found_by_its_name_and_defaults_are_not_reported(capsys: Any) -> None:
    config = RunConfig()
    assert value(config, "model.llm.chat") is False
    check_read("train", config, RunConfig())
    check_read("judge", JudgeConfig(runs=["a"]), JudgeConfig())
    show_held()
    assert without_next(capsys.readouterr().err) == ""


def test_an_incomplete_experiment_may_be_completed_on_the_command_line(
    calls: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.delenv("LLM2SLM_SEED_OF_A_TEST", raising=False)
    (tmp_path / "conf/experiment").mkdir(parents=True)
    text = "# @package _global_\nseed: ${oc.env:LLM2SLM_SEED_OF_A_TEST}\ntrainer: {max_steps: 0}\n"
    (tmp_path / "conf/experiment/open.yaml").write_text(text)
    given = ["--config-dir", str(tmp_path / "conf"), "experiment=open", "seed=3", "trainer.max_steps=2"]
    assert main(["train", *given, f"hydra.run.dir={tmp_path / 'run'}"]) == 0
    ((config, _),) = calls
    assert (config.seed, config.trainer.max_steps) == (3, 2)
