"""`llm2slm label`: answers of the LLM in the order of the split; killed at any moment, no label is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest
from sampling import first_few, representatives
from tiny_runs import label_in_parts, tiny_run

from llm2slm import runs
from llm2slm.commands import label
from llm2slm.commands.train import run as train
from llm2slm.config import RunConfig
from llm2slm.data.datamodule import DataModule
from llm2slm.data.tasks import resolve
from llm2slm.models.build import build_model
from llm2slm.resumable import ResumableLines
from llm2slm.testing import write_tiny_t5
from llm2slm.types import Labels, SystemKind, UserError


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("label")


def labelling(root: Path, **changes: Any) -> RunConfig:
    config = tiny_run(root)
    config.split, config.trainer.threads = "train", 1
    for key, value in changes.items():
        setattr(config.label, key, value)
    return config


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "labels.jsonl").read_text("utf-8").splitlines()]


def test_labels_are_what_the_llm_generates_in_the_order_of_the_split(root: Path, tmp_path: Path) -> None:
    config = labelling(root)
    result = label.run(config, tmp_path)
    config.model.kind = SystemKind.llm
    model = build_model(config.model, config.data).eval()
    examples = DataModule(config.data, resolve(config.task), model.collator, 5).examples("train")
    expected = [model.generate_text([e.prompt], max_new_tokens=6)[0] for e in examples]
    assert len(set(expected)) > 5
    assert rows_of(tmp_path) == [
        {"index": e.index, "source": e.source, "prediction": text} for e, text in zip(examples, expected, strict=True)
    ]
    assert result.systems[0].kind == "llm" and result.systems[0].quality["chrf"].n == len(examples)
    assert result.systems[0].parameters == {"total": sum(p.numel() for p in model.slm.parameters()), "trainable": 0}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "labels.jsonl", "result.json"]


def test_labels_are_scored_against_the_targets_of_the_corpus(root: Path, tmp_path: Path) -> None:
    expected = label.run(labelling(root), tmp_path / "labels").systems[0].quality
    config = labelling(root)
    config.data.labels, config.data.labels_from = Labels.llm, str(tmp_path / "labels")
    assert label.run(config, tmp_path / "again").systems[0].quality == expected
    assert (expected["exact_match"].value, expected["exact_match"].n) == (0, 40)


def test_labels_replace_the_targets_of_training_only(root: Path, tmp_path: Path) -> None:
    label.run(labelling(root), tmp_path / "labels")
    by_index = {row["index"]: row["prediction"].strip() for row in rows_of(tmp_path / "labels")}
    config = tiny_run(root)
    config.data.labels, config.data.labels_from = Labels.llm, str(tmp_path / "labels")
    model = build_model(config.model, config.data)
    data = DataModule(config.data, resolve(config.task), model.collator, config.seed)
    for row in data.encoded("train"):
        assert model.collator.decode([row.response]) == [by_index[row.index]]
    gold = DataModule(tiny_run(root).data, resolve(config.task), model.collator, config.seed)
    assert data.encoded("validation") == gold.encoded("validation")  # the targets of the corpus
    train(config, tmp_path / "run")
    assert (tmp_path / "run" / "result.json").is_file()


def test_a_parquet_file_records_its_origin(root: Path, tmp_path: Path) -> None:
    label.run(labelling(root), tmp_path / "lines")
    label.run(labelling(root, format="parquet"), tmp_path / "table")
    table = parquet.read_table(tmp_path / "table" / "labels.parquet")
    assert table.to_pylist() == rows_of(tmp_path / "lines")
    origin = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    assert origin["llm2slm.model"] == tiny_run(root).model.llm.name and "torch" in origin["llm2slm.versions"]


def test_sampling_does_not_depend_on_where_it_was_interrupted(root: Path, tmp_path: Path, monkeypatch: Any) -> None:
    sampled = {"do_sample": True, "temperature": 2.0}
    label.run(labelling(root, **sampled), tmp_path / "whole")
    assert rows_of(tmp_path / "whole") != (
        label.run(labelling(root), tmp_path / "greedy") and rows_of(tmp_path / "greedy")
    )
    label_in_parts(monkeypatch, lambda: labelling(root, **sampled), tmp_path / "parts")
    assert (tmp_path / "parts" / "labels.jsonl").read_bytes() == (tmp_path / "whole" / "labels.jsonl").read_bytes()


def test_sampling_excludes_no_token(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default, transformers samples among the 50 most likely tokens."""
    monkeypatch.setattr("transformers.generation.utils.TopKLogitsWarper", lambda *_, **__: pytest.fail("some are out"))
    label.run(labelling(root, do_sample=True, temperature=50.0), tmp_path)
    assert len({row["prediction"] for row in rows_of(tmp_path)}) == 40


@pytest.mark.parametrize(
    ("change", "said"),
    first_few(
        [
            (lambda c: setattr(c.model.llm, "dtype", "bfloat16"), r"dtype 'float32', now 'bfloat16'"),
            (lambda c: setattr(c.model.llm, "prefix", "the "), r"frame None, now .*'prefix': 'the '"),
            (
                lambda c: setattr(c.model.llm, "name", c.model.llm.name + "-other"),
                r"model .*, weights '\w+', now '\w+'",
            ),
            (lambda c: setattr(c.task, "prefix", "see: "), r"rows '\w+', now '\w+'"),
            (lambda c: setattr(c.task, "num_beams", 2), r"num_beams 1, now 2"),
            (lambda c: setattr(c.task, "max_new_tokens", 7), r"max_new_tokens 6, now 7"),
            (lambda c: setattr(c, "split", "test"), r"split 'train', now 'test'"),
            (lambda c: setattr(c.label, "do_sample", True), r"do_sample False, now True, temperature None, now 1.0"),
        ],
        4,
    ),
)
def test_unfinished_labels_are_not_resumed_with_other_settings(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Any, said: str
) -> None:
    def ended(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt
        yield

    with monkeypatch.context() as patch:
        patch.setattr(label, "answer_batches", ended)
        with pytest.raises(KeyboardInterrupt):
            label.run(labelling(root), tmp_path)
    before = (tmp_path / "labels.jsonl.part").read_bytes()
    config = labelling(root)
    write_tiny_t5(f"{config.model.llm.name}-other", seed=9, width=24)
    change(config)
    with pytest.raises(UserError, match=f"was begun with other settings .*{said}"):
        label.run(config, tmp_path)
    assert (tmp_path / "labels.jsonl.part").read_bytes() == before


@pytest.mark.slow
def test_a_run_killed_twenty_times_writes_the_file_of_an_undisturbed_run(tmp_path: Path) -> None:
    tests = Path(__file__).resolve().parents[1]
    env = {**os.environ, "PYTHONPATH": str(tests.parent), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    script = [sys.executable, str(tests / "killed_labels.py"), str(tmp_path), "20"]
    done = subprocess.run(script, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["killed"] == 20
    assert said["same"]
    assert all(said["same"])
    assert len({held for held in said["held"] if 0 < held < said["labels"]}) >= 3  # in the middle, not at the ends


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: setattr(c.label, "format", "csv"), "label.format=csv: expected one of jsonl, parquet"),
        (lambda c: setattr(c.label, "temperature", 0.0), "label.temperature=0.0: must be above 0"),
        (lambda c: setattr(c.task, "metrics", ["bleuu"]), "metric 'bleuu' is unknown"),
    ],
)
def test_mistakes_are_reported_before_the_llm_is_loaded(root: Path, tmp_path: Path, change: Any, said: str) -> None:
    config = labelling(root)
    change(config)
    config.model.llm.name = "/nowhere"
    with pytest.raises(UserError, match=said):
        label.run(config, tmp_path / "never")
    assert not (tmp_path / "never").exists()


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file with its modification time."""
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


def recorded_system(folder: Path) -> dict[str, Any]:
    """The system of a result, without times."""
    system: dict[str, Any] = runs.read_result(folder)["systems"][0]
    system["notes"].pop("data")
    return system


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_the_same_command_on_finished_labels_changes_nothing(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, form: str
) -> None:
    label.run(labelling(root, format=form), tmp_path)
    before = contents(tmp_path)
    monkeypatch.setattr(label, "answer_batches", lambda *_, **__: pytest.fail("it was asked again"))
    capsys.readouterr()
    assert label.run(labelling(root, format=form), tmp_path) is None
    shown = capsys.readouterr()
    said = f"llm2slm: {tmp_path}/labels.{form}: all 40 labels exist already, made with the same settings\n"
    assert shown.err.endswith(said) and not shown.out
    assert contents(tmp_path) == before


@pytest.mark.parametrize("form", representatives(["jsonl", "parquet"], ["jsonl"]))
@pytest.mark.parametrize(
    "step", representatives(["put", "evaluated", "write_result", "discard"], ["put", "write_result"])
)
def test_a_command_interrupted_after_the_last_label_is_completed(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, form: str
) -> None:
    """The same command writes the missing files and generates no label again."""
    label.run(labelling(root, format=form), tmp_path / "whole")

    def ended(*_: Any, **__: Any) -> Any:
        raise SystemError

    steps = {"put": (label, "put"), "evaluated": (label, "evaluated"), "write_result": (label.runs, "write_result")}
    with monkeypatch.context() as patch:
        patch.setattr(*steps.get(step, (ResumableLines, "discard")), ended)
        with pytest.raises(SystemError):
            label.run(labelling(root, format=form), tmp_path / "run")
    assert (tmp_path / "run" / "labels.jsonl.part").is_file()
    monkeypatch.setattr(label, "answer_batches", lambda *_, done, **__: iter(()) if done == 40 else pytest.fail())
    label.run(labelling(root, format=form), tmp_path / "run")
    assert contents(tmp_path / "run").keys() == contents(tmp_path / "whole").keys()
    if form == "jsonl":  # a parquet file records its time
        assert (tmp_path / "run" / "labels.jsonl").read_bytes() == (tmp_path / "whole" / "labels.jsonl").read_bytes()
    assert recorded_system(tmp_path / "run") == recorded_system(tmp_path / "whole")


def test_a_missing_result_is_written_and_labels_are_kept(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    label.run(labelling(root), tmp_path)
    before, expected = contents(tmp_path), recorded_system(tmp_path)
    (tmp_path / "result.json").unlink()
    monkeypatch.setattr(label, "answer_batches", lambda *_, **__: pytest.fail("it was asked again"))
    label.run(labelling(root), tmp_path)
    assert recorded_system(tmp_path) == expected
    after = contents(tmp_path)
    assert after.keys() == before.keys()
    assert all(after[name] == before[name] for name in ("labels.jsonl", "config.yaml"))
    (tmp_path / "result.json").unlink()
    other = labelling(root)
    other.task.num_beams = 2
    with pytest.raises(UserError, match=r"finished, with other settings \(task.num_beams 1, now 2\); train with"):
        label.run(other, tmp_path)
    lines = (tmp_path / "labels.jsonl").read_text("utf-8").splitlines(keepends=True)
    (tmp_path / "labels.jsonl").write_text("".join(lines[:-1]), "utf-8")
    with pytest.raises(UserError, match=r"labels.jsonl: holds no label of row 39 \(from 0\)"):
        label.run(labelling(root), tmp_path)


def test_labels_with_other_settings_are_not_changed(root: Path, tmp_path: Path) -> None:
    label.run(labelling(root), tmp_path)
    before = contents(tmp_path)
    other = labelling(root)
    other.task.num_beams = 2
    with pytest.raises(UserError, match=r"labels.jsonl: is finished, with other settings \(num_beams 1, now 2\)"):
        label.run(other, tmp_path)
    with pytest.raises(UserError, match=r"labels.jsonl: is finished, but label.format=parquet is given"):
        label.run(labelling(root, format="parquet"), tmp_path)
    assert contents(tmp_path) == before
    (tmp_path / "labels.jsonl").unlink()
    (tmp_path / "labels.jsonl.part").write_text('{"settings": {"num_beams": 4}}\n{}\n')
    with pytest.raises(UserError, match=r"labels.jsonl.part: was begun with other settings \(num_beams 4, now 1"):
        label.run(labelling(root), tmp_path)


def test_labels_with_other_weights_are_refused(tmp_path: Path) -> None:
    label.run(labelling(tmp_path), tmp_path / "labels")
    write_tiny_t5(labelling(tmp_path).model.llm.name, seed=9, width=24)
    with pytest.raises(UserError, match=r"is finished, with other settings \(weights '\w+', now '\w+'\)"):
        label.run(labelling(tmp_path), tmp_path / "labels")
