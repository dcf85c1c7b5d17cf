"""The default task of rows: that of the corpus, or plain text; never the prefix of another corpus."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import tiny_overrides
from tiny_runs import tiny_run, write_rows

from llm2slm.cli import main
from llm2slm.commands.task_choice import print_task, warn_task, with_task
from llm2slm.commands.train import run as train
from llm2slm.config import DataConfig, PartConfig, RunConfig, TaskConfig
from llm2slm.data.sources.sources import task_of


def settled(data: dict[str, Any], task: str | None = None) -> RunConfig:
    given = RunConfig(task=TaskConfig(task), data=DataConfig(**data))
    print_task(given.task, given.data)
    return with_task(given)


@pytest.mark.parametrize(
    ("data", "task", "prefix"),
    [
        ({}, "translation", "translate English to German: "),
        ({"corpus": "summarization"}, "summarization", "summarize: "),
        ({"corpus": "mixture"}, "mixture", ""),
        ({"name": "samsum"}, "summarization", "summarize: "),
        ({"name": "wmt14_en_fr"}, "translation", "translate English to French: "),
        ({"name": "alpaca"}, "instruction", ""),
        ({"name": "json"}, "text", ""),
        ({"name": "json", "source": "en", "target": "de"}, "text", ""),
        ({"name": "hub", "path": "me/data"}, "text", ""),
    ],
)
def test_each_corpus_has_a_default_task(data: dict[str, Any], task: str, prefix: str, capsys: Any) -> None:
    found = settled(data)
    assert (found.task.name, task_of(found.task, found.data).prefix) == (task, prefix)
    assert task_of(TaskConfig(), DataConfig(**data)) == task_of(found.task, found.data)
    printed = capsys.readouterr().err
    assert printed.count("\n") == (1 if data else 0)
    assert not data or f"task={task}" in printed
    chosen = settled(data, "translation")
    assert (chosen.task.name, capsys.readouterr().err) == ("translation", "")
    warn_task(found)  # the default task causes no warning
    assert capsys.readouterr().err == ""


def test_files_without_a_task_get_no_prefix(capsys: Any) -> None:
    task = task_of(TaskConfig(), DataConfig(name="json"))
    assert (task.prefix, task.metrics, task.templates) == ("", ("rougeL", "chrf", "exact_match"), ())
    settled({"name": "json"})
    assert capsys.readouterr().err == (
        "llm2slm: data=json without task: task=text is used (no prefix; rougeL, chrf, exact_match); choose another by "
        "task=translation, summarization or instruction\n"
    )


def test_parts_of_a_mixture_have_default_tasks(capsys: Any) -> None:
    parts = [PartConfig(name="samsum"), PartConfig(name="json"), PartConfig(name="json", task="summarization")]
    found = settled({"name": "mixture", "parts": parts})
    assert (found.task.name, [part.task for part in found.data.parts]) == (
        "mixture",
        ["summarization", "text", "summarization"],
    )
    prefixes = dict(task_of(found.task, found.data).prefixes)
    assert list(prefixes.values()) == ["summarize: ", "", "summarize: "]
    assert capsys.readouterr().err == (
        "llm2slm: data.parts[1] (json) without task: task=text is used (no prefix; rougeL, chrf, exact_match)\n"
    )


def overrides_of_files(folder: Path) -> list[str]:
    write_rows(folder / "rows")
    files = [f"data.{split}={folder / 'rows' / split}.jsonl" for split in ("train", "validation", "test")]
    return ["data=json", *files, "data.source=source", "data.target=target"]


def test_training_on_files_adds_no_prefix(tmp_path: Path, tiny_llm: Path, capsys: Any) -> None:
    run = ["train", *tiny_overrides(tiny_llm), *overrides_of_files(tmp_path), f"hydra.run.dir={tmp_path / 'run'}"]
    assert main(run) == 0
    shown = capsys.readouterr()
    assert "data=json without task: task=text is used" in shown.err
    recorded = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert recorded["task"]["name"] == "text"
    saved = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert saved["prefix"] == ""
    first = json.loads((tmp_path / "rows" / "train.jsonl").read_text().splitlines()[0])
    lines = shown.out.splitlines()
    place = next(i for i, line in enumerate(lines) if line.lstrip().startswith("data "))
    above = "\n".join(lines[:place])
    assert "task text: no prefix" in above
    assert f"'{first['source']}'" in above and f"'{first['target']}'" in above


def test_a_run_that_was_recorded_with_a_task_keeps_it(tmp_path: Path, capsys: Any) -> None:
    config = tiny_run(tmp_path, max_steps=1)
    config.task.name = "translation"
    train(config, tmp_path / "run")
    assert main(["evaluate", f"run={tmp_path / 'run'}", f"hydra.run.dir={tmp_path / 'again'}"]) == 0
    assert "without task" not in capsys.readouterr().err
    assert yaml.safe_load((tmp_path / "again" / "config.yaml").read_text())["task"]["name"] == "translation"
