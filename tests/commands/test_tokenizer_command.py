"""`llm2slm tokenizer`, and `model.slm.tokenizer=train:N` as the first step of a training."""

from __future__ import annotations

import json

import pytest
from command_line import files_of, mistake, tiny_overrides
from sampling import representatives
from transformers import AutoTokenizer

from llm2slm.cli import main
from llm2slm.models.hybrid import LLM2SLM

ROWS = [{"source": f"question {i}: the little dog {i * i}", "target": f"der kleine Hund {i}"} for i in range(30)]
PREFIX = "to German: "


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("train", "dev", "test"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    own = [
        f"data.{split}={name}.jsonl" for split, name in (("train", "train"), ("validation", "dev"), ("test", "test"))
    ]
    return ["data=json", *own, f"task.prefix={PREFIX}"]


def test_the_command_trains_the_tokenizer_that_train_would(files, tiny_llm, tmp_path, capsys):
    assert main(["tokenizer", "data=json", "data.train=train.jsonl", f"task.prefix={PREFIX}", "vocab_size=290"]) == 0
    shown = capsys.readouterr().out
    assert "outputs/tokenizer: 290 entries from 30 rows; " in shown
    alone = AutoTokenizer.from_pretrained("outputs/tokenizer")
    texts = [text for row in ROWS for text in (PREFIX + row["source"], row["target"])]
    tokens = sum(len(alone(text, add_special_tokens=False)["input_ids"]) for text in texts)
    assert float(shown.split("rows; ")[1].split()[0]) == pytest.approx(sum(map(len, texts)) / tokens, abs=0.005)
    assert all(alone.decode(alone(text)["input_ids"], skip_special_tokens=True) == text for text in texts)
    # a word of the prefix only
    assert "ĠGerman" in alone.get_vocab()

    ordered = ["model.tokenizers=offsets", "model.slm.tokenizer=train:290", "hydra.run.dir=run"]
    sizes = ["data.train_size=null"]
    assert main(["train", *files, *tiny_overrides(tiny_llm), *sizes, *ordered]) == 0
    model = LLM2SLM.from_pretrained(tmp_path / "run" / "model")
    assert model.collator.slm_tokenizer.get_vocab() == alone.get_vocab()
    assert model.slm.config.vocab_size == 290
    assert model.collator.slm_tokenizer.get_vocab() != model.collator.llm_tokenizer.get_vocab()


@pytest.mark.parametrize(
    ("order", "message"),
    representatives(
        [
            ("train:many", "model.slm.tokenizer=train:many: give the number of entries, as train:8000"),
            ("train:", "model.slm.tokenizer=train:: give the number of entries, as train:8000"),
            ("train:-5", "model.slm.tokenizer=train:-5: give the number of entries, as train:8000"),
            ("train:100", "tokenizer of 100 entries: too small; a bpe one takes at least 258"),
        ],
        lambda case: case[0] in ("train:many", "train:100"),
    ),
)
def test_invalid_vocabulary_sizes_are_refused_before_anything_is_written(
    files, tiny_llm, tmp_path, capsys, order, message
):
    arguments = ["model.tokenizers=offsets", f"model.slm.tokenizer={order}", "hydra.run.dir=run"]
    assert main(["train", *files, *tiny_overrides(tiny_llm), *arguments]) == 2
    assert mistake(capsys) == message
    assert files_of(tmp_path / "run") == {}


def test_the_command_refuses_a_vocabulary_that_is_too_small(files, tmp_path, capsys):
    assert main(["tokenizer", "data=json", "data.train=train.jsonl", "vocab_size=10", "out=tok"]) == 2
    assert mistake(capsys) == "tokenizer of 10 entries: too small; a bpe one takes at least 258"
    assert not (tmp_path / "tok").exists()
