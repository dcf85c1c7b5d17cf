"""Statistics of the training data: compared with counts by hand; the table, the notes, the warning."""

from __future__ import annotations

import json

import pytest
from command_line import tiny_overrides
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from sampling import examples
from tiny_runs import build, tiny_run

from llm2slm.cli import main
from llm2slm.data import statistics
from llm2slm.data.collate import Collator, Encoded
from llm2slm.data.tokenization.tokenizer import train_tokenizer
from llm2slm.types import Example, Overlong


def example(prompt, target="t"):
    return Example(0, prompt, prompt, target)


@examples(60)
@given(st.lists(st.integers(1, 400), min_size=1, max_size=120))
def test_quantiles_of_lengths_are_lengths_of_rows(sizes):
    found = statistics.lengths([Encoded(i, [0] * n, None, [0]) for i, n in enumerate(sizes)])
    assert set(found) == {"prompt", "response"}
    assert found["response"] == {"median": 1, "p95": 1, "max": 1}
    told, ordered = found["prompt"], sorted(sizes)
    assert told["max"] == ordered[-1]
    for key, share in (("median", 50), ("p95", 95)):
        least = next(n for n in ordered if 100 * sum(m <= n for m in sizes) >= share * len(sizes))
        assert told[key] == least


def test_both_tokenizers_are_reported_if_they_differ():
    slm, llm_tokenizer = train_tokenizer(["ab"], 258), train_tokenizer(["abab " * 9], 300)
    examples = [example("abab"), example("abab abab", "xyz")]
    two = statistics.lengths(Collator(slm, llm_tokenizer).tokenized(examples))
    assert two["prompt"]["max"] == len(slm("abab abab")["input_ids"])
    assert two["llm_prompt"]["max"] == len(llm_tokenizer("abab abab")["input_ids"]) < two["prompt"]["max"]
    assert two["response"] == {"median": 2, "p95": 4, "max": 4}
    assert "llm_prompt" not in statistics.lengths(Collator(slm, slm).tokenized(examples))


def test_repeated_seen_and_empty_rows_are_counted():
    rows = [example("a"), example("a"), example("a", "other"), example("b"), example("a")]
    assert statistics.repeated(rows) == 2
    assert statistics.seen([example("a", "x"), example("a", "y"), example("A"), example("c")], rows) == 2
    assert statistics.seen(rows, []) == 0
    assert statistics.empty([*rows, example("a", ""), example("c", "")]) == 2


REPORT = {
    "train": {"rows": 14_638, "dropped": 0, "overlong_prompts": 994, "overlong_responses": 0, "repeated": 3,
              "tokens": {"prompt": {"median": 131, "p95": 402, "max": 1_203}, "response": {"median": 26, "p95": 55,
                                                                                          "max": 97}}},
    "test": {"rows": 819, "dropped": 7, "empty": 4, "overlong_prompts": 5, "overlong_responses": 2, "in_train": 0,
             "tokens": {"prompt": {"median": 1, "p95": 2, "max": 3}, "llm_prompt": {"median": 4, "p95": 5, "max": 6},
                        "response": {"median": 7, "p95": 8, "max": 9}}},
}  # fmt: skip


def test_the_table_contains_every_figure():
    console = Console(width=80)
    with console.capture() as capture:
        console.print(statistics.table(REPORT))
    lines = [" ".join(line.split()) for line in capture.get().splitlines() if line.strip()]
    assert lines[0] == "data train test"
    assert lines[2:] == [
        "rows 14,638 819",
        "prompts too long 994 5",
        "responses too long 0 2",
        "responses that are empty – 4",
        "rows dropped 0 7",
        "rows that are repeated 3 –",
        "prompts that are in train – 0",
        "prompt tokens: median, 95 %, longest 131 402 1,203 1 2 3",
        "the LLM's prompt tokens – 4 5 6",
        "response tokens 26 55 97 7 8 9",
    ]
    assert len(lines) == 12


def test_zero_counts_have_no_line():
    plain = {"train": REPORT["train"] | {"overlong_prompts": 0, "repeated": 0}}
    names = [name for name, _ in statistics._lines(plain)]
    assert names[:2] == ["rows", "rows that are repeated"]
    assert len(names) == 4


def test_a_prompt_of_one_token_is_not_reported_as_the_prompt(tmp_path):
    """With an LLM's cache the SLM gets the last token alone, whatever the prompt."""
    config = tiny_run(tmp_path, llm="llama", slm="llama", mode="kv")
    _, data = build(config)
    rows = data.encoded("train")
    assert data.collator.last_token is not None and {len(row.slm) for row in rows} == {1}
    found = data.report()["train"]
    assert found["tokens"].keys() == {"llm_prompt", "response"}
    assert found["tokens"]["llm_prompt"]["max"] == max(len(row.llm) for row in rows) > 1
    assert found["tokens_per_byte"].keys() == {"llm_prompt", "response"}
    lines = dict(statistics._lines(data.report()))
    assert [name for name in lines if "tokens" in name] == [
        "the LLM's prompt tokens: median, 95 %, longest", "response tokens",
    ]  # fmt: skip


# In training


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    splits = {
        "train": ["one", "two", "two", "three", "a very long way to go"],
        "validation": ["two", "four"],
        "test": ["five", " one ", "one"],
    }
    for split, sources in splits.items():
        rows = [{"source": source, "target": "t"} for source in sources]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def train(llm, *arguments):
    data = ["data=json", *(f"data.{split}={split}.jsonl" for split in ("train", "validation", "test"))]
    sizes = [f"data.{split}_size=null" for split in ("train", "validation", "test")]
    return main(["train", *tiny_overrides(llm), *data, *sizes, "hydra.run.dir=run", "task.prefix=", *arguments])


def test_training_reports_and_records_the_statistics_of_its_data(files, tiny_llm, capsys):
    limits = ["data.max_prompt_tokens=12", f"data.overlong={Overlong.drop}", "task.metrics=[chrf]"]
    assert train(tiny_llm, *limits) == 0
    shown = capsys.readouterr()
    lines = [line.split() for line in shown.out.splitlines()]
    assert ["data", "train", "validation", "test"] in lines
    assert ["prompts", "that", "are", "in", "train", "–", "1", "2"] in lines
    warnings = [line for line in shown.err.splitlines() if "warning" in line]
    assert warnings == [
        "llm2slm: warning: 2 of 3 prompts of the test split are also in the training data; its scores partly "
        "measure memorization"
    ]
    [system] = json.loads((files / "run" / "result.json").read_text("utf-8"))["systems"]
    told = system["notes"]["data"]
    assert (told["train"]["repeated"], told["train"]["dropped"]) == (1, 1)
    assert (told["validation"]["in_train"], told["test"]["in_train"]) == (1, 2)
    assert told["train"]["tokens"]["prompt"]["max"] > 12
    assert "in_train" not in told["train"]
    assert "* test: 3 rows, in train 2" in (files / "run" / "model" / "README.md").read_text("utf-8")


def test_empty_texts_are_reported_on_one_line(files, tiny_llm, capsys):
    rows = [("one", "t"), (" ", "t"), ("two", ""), ("three", "\t"), ("", "t")]
    text = "".join(json.dumps({"source": source, "target": target}) + "\n" for source, target in rows)
    (files / "train.jsonl").write_text(text)
    (files / "test.jsonl").write_text('{"source": "six", "target": "t"}\n{"source": "seven", "target": ""}\n')
    assert train(tiny_llm, "task.metrics=[exact_match]", "task.prefix=to") == 0
    [line] = [line for line in capsys.readouterr().err.splitlines() if "empty" in line]
    assert line == (
        "llm2slm: warning: empty prompts: 2 of 5 train rows, the first is row 1 (from 0); empty responses: 2 of 5 "
        "train rows, the first is row 2 (from 0), 1 of 2 test rows, the first is row 1 (from 0); the rows are used as "
        "they are: complete or remove them"
    )


def test_rows_of_language_modelling_have_no_prompt(files, tiny_llm, capsys):
    assert train(tiny_llm, "task=lm", "model=llm", "data.target=source", "data.source=null", "task.prefix=x") == 0
    assert "empty" not in capsys.readouterr().err


@pytest.mark.slow
def test_disjoint_test_and_training_prompts_cause_no_warning(files, tiny_llm, capsys):
    (files / "test.jsonl").write_text(json.dumps({"source": "six", "target": "t"}) + "\n")
    assert train(tiny_llm) == 0
    assert "warning" not in capsys.readouterr().err


@pytest.mark.slow
def test_labels_that_are_set_but_not_read_are_reported(files, tiny_llm, capsys):
    assert train(tiny_llm, "data.labels_from=labels", "trainer.max_steps=1", "task.metrics=[chrf]") == 0
    assert "data.labels_from=labels (read with data.labels=llm or mix)" in capsys.readouterr().err


def test_a_store_that_no_system_reads_is_reported(files, tiny_llm, capsys):
    small = ("trainer.max_steps=1", "task.metrics=[chrf]")
    assert train(tiny_llm, "model.kind=slm", "model.conditioning=none", "data.reps=nowhere", *small) == 0
    assert "data.reps=nowhere (read with model.kind=llm2slm)" in capsys.readouterr().err
