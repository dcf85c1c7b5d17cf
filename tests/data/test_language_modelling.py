"""Task lm: the text of a row that is generated, the tokens before it, and long texts in pieces."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llm2slm.config import DataConfig, PartConfig, TaskConfig
from llm2slm.data.collate import Collator
from llm2slm.data.datamodule import DataModule
from llm2slm.data.sources.sources import read_split, stream_rows, task_of
from llm2slm.data.statistics import seen
from llm2slm.data.tokenization.prompts import Frame
from llm2slm.testing import tiny_tokenizer
from llm2slm.types import Labels, Overlong, UserError
from tests.data.kinds import KINDS
from tests.data.test_collate import example

LM = TaskConfig(name="lm")


def write(path: Path, *rows: dict[str, str]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def examples(data: DataConfig, task: TaskConfig = LM):
    known = task_of(task, data)
    return [known.example(row, i) for i, row in enumerate(read_split(data, known, "train", 1)[0])]


def test_the_text_is_a_field_or_source_and_target(tmp_path):
    rows = [{"text": " a\nb ", "q": "one", "a": "two"}, {"text": "c", "q": "", "a": "three"}]
    path = write(tmp_path / "rows.jsonl", *rows)

    def texts(task: TaskConfig = LM, **values: str) -> list[str]:
        found = examples(DataConfig(name="json", train=path, **values), task)
        assert {(one.prompt, one.source) for one in found} == {("", "")}
        return [one.target for one in found]

    assert texts() == ["a\nb", "c"]
    assert texts(target="a") == ["two", "three"]
    assert texts(source="q", target="a") == ["one\n\ntwo", "three"]
    assert texts(source="text") == texts(source="text", target="text") == ["a\nb", "c"]  # one column, once
    template = TaskConfig(name="lm", template=["{q}: {text} {target}", "{a}"])
    assert texts(template, target="a") == ["one:  a\nb  two", "three"]
    assert texts(TaskConfig(name="lm", template=[])) == ["a\nb", "c"]
    with pytest.raises(UserError, match=r"no column 'nothing'|'nothing'"):
        texts(target="nothing")


def test_texts_of_known_and_built_in_corpora_join_both_columns(tmp_path):
    (tmp_path / "samsum").mkdir()
    import gzip

    with gzip.open(tmp_path / "samsum" / "train.jsonl.gz", "wt") as file:
        file.write(json.dumps({"source": "A: hi\nB: ho", "target": "They meet."}) + "\n")
    data = DataConfig(name="samsum", root=str(tmp_path))
    assert [one.target for one in examples(data)] == ["A: hi\nB: ho\n\nThey meet."]
    alone = TaskConfig(name="lm", template=["{source}"])
    assert [one.target for one in examples(data, alone)] == ["A: hi\nB: ho"]
    (built_in,) = examples(DataConfig(train_size=1))
    pair = read_split(DataConfig(train_size=1), task_of(TaskConfig(), DataConfig()), "train", 1)[0][0]
    assert built_in.target == f"{pair['source']}\n\n{pair['target']}"
    # for the copy of the Hub: the template of the corpus before the answer
    hub = task_of(LM, DataConfig(name="alpaca"))
    assert [one.text for one in hub.templates] == [
        "{instruction}\n\n{input}\n\n{target}", "{instruction}\n\n{target}", "{target}"
    ]  # fmt: skip


def test_streamed_and_mixed_rows_have_the_same_texts(tmp_path):
    path = write(tmp_path / "rows.jsonl", {"text": "one"}, {"text": ""}, {"text": "two"})
    data = DataConfig(name="json", train=path)
    known = task_of(LM, data)
    assert list(stream_rows(data, known, 1)) == [{"source": "", "target": ""}, {"source": "", "target": "two"}]
    pairs = write(tmp_path / "pairs.jsonl", {"source": "q", "target": "a"})
    parts = [
        PartConfig(name="json", train=path, task="lm"),
        PartConfig(name="json", train=pairs, task="text", repeat=True),
    ]
    mixed = examples(DataConfig(name="mixture", parts=parts), TaskConfig(name="mixture"))
    assert sorted((one.prompt, one.target) for one in mixed) == [("", ""), ("", "one"), ("", "two")] + [("q", "a")] * 3


def test_settings_that_do_not_fit_the_task_are_refused(tmp_path):
    path = write(tmp_path / "rows.jsonl", {"source": "a", "target": "b", "text": "c"})
    data = DataConfig(name="json", train=path, overlong=Overlong.split)
    with pytest.raises(UserError, match=r"^data.overlong=split: only for plain text \(task=lm\)"):
        task_of(TaskConfig(name="instruction"), data)
    with pytest.raises(UserError, match=r"^data.labels=llm: not for plain text \(task=lm\)"):
        task_of(LM, DataConfig(name="json", train=path, labels=Labels.llm))
    with pytest.raises(UserError, match=r"\{target\} would show the answer"):
        task_of(TaskConfig(name="text", template=["{target}"]), data)


# Tokens before the text


@pytest.mark.parametrize(
    ("kind", "decoder_only", "wanted"),
    [
        ("t5", False, ["</s>"]), ("xlmr", False, ["<s>", "</s>"]), ("llama", True, ["<s>"]),
        ("bytes_bpe", True, ["<|endoftext|>"]), ("words", True, ["</s>"]), ("words", False, ["</s>"]),
    ],
)  # fmt: skip
def test_an_empty_prompt_is_the_start_sequence_of_the_tokenizer(
    kind: str, decoder_only: bool, wanted: list[str]
) -> None:
    tokenizer = KINDS[kind]()
    for align in (False, True):
        collator = Collator(tokenizer, KINDS["llama"]() if align else None, align=align, decoder_only=decoder_only)
        (row,) = collator.encode([example("", "The old")])
        assert tokenizer.convert_ids_to_tokens(row.slm) == wanted
        assert collator.slm_prompts.rendered("") == ""
        assert row.slm_spans is None if not align else len(row.slm_spans.start) == len(wanted)
        batch = collator(collator.encode([example("", "a"), example("big farmer", "b")]))
        assert batch.slm_mask_BQ[0].sum() == len(wanted)
    assert Collator(tokenizer).decode([row.response]) == ["The old"]


def test_an_empty_prompt_in_a_frame_has_the_end_mark() -> None:
    tokenizer = KINDS["bytes_bpe"]()
    collator = Collator(tokenizer, llm_frame=Frame(prefix="Say: "), decoder_only=True)
    (row,) = collator.encode([example("", "a")])
    assert tokenizer.decode(row.slm) == "Say: \n"


# Pieces


def pieces(texts: list[str], limit: int):
    tokenizer = tiny_tokenizer()
    collator = Collator(tokenizer, decoder_only=True, max_response_tokens=limit, overlong=Overlong.split)
    return tokenizer, collator, collator.encode([example("", text, i) for i, text in enumerate(texts)])


def test_a_long_text_is_divided_into_pieces_without_loss() -> None:
    texts = ["the little dog sees the old house", "it", ("dog " * 30).strip()]
    tokenizer, collator, rows = pieces(texts, 5)
    for index, text in enumerate(texts):
        mine = [row for row in rows if row.index == index]
        whole = tokenizer(text)["input_ids"]
        assert whole[-1] == tokenizer.eos_token_id
        assert [token for row in mine for token in row.response] == whole
        assert [len(row.response) for row in mine[:-1]] == [5] * (len(mine) - 1) and 0 < len(mine[-1].response) <= 5
        assert all(row.slm == [tokenizer.eos_token_id] for row in mine)
    assert collator.counts["response"] == 2 and len(rows) > 3
    with pytest.raises(UserError, match=r"its prompt has .* tokens, at most 512 are allowed"):
        collator.encode([example("dog " * 600, "a")])


def test_pieces_are_training_rows_and_counted(tmp_path):
    texts = ["the little dog sees the old house " * 4, "it", "two dogs"]
    path = write(tmp_path / "rows.jsonl", *({"text": text} for text in texts))
    data = DataConfig(name="json", train=path, validation=path, overlong=Overlong.split, max_response_tokens=6)
    data.cache = None
    tokenizer = tiny_tokenizer()
    collator = Collator(tokenizer, decoder_only=True, max_response_tokens=6, overlong=Overlong.split)
    module = DataModule(data, task_of(LM, data), collator, 1)
    rows = module.encoded("train")
    module.prepare("validation")
    module.compare()
    told = module.report()["train"]
    assert (told["rows"], told["dropped"], told["pieces"], told["overlong_responses"]) == (3, 0, len(rows), 1)
    assert len(module.examples("train")) == 3
    assert module.report()["validation"]["in_train"] == 3
    tokens = sum(int((batch.labels_BT >= 0).sum()) for batch in module.train_dataloader())
    assert tokens == sum(len(tokenizer(text.strip())["input_ids"]) for text in texts)
    data.streaming, data.buffer = True, 3
    streamed = DataModule(data, task_of(LM, data), collator, 1)
    assert sorted(row.response for row in streamed.first_rows("train")) == sorted(row.response for row in rows)
    assert streamed.report()["train"]["dropped"] == 0


def test_texts_without_a_source_are_compared_by_their_target() -> None:
    training = [example("", "one"), example("", "two"), example("q", "a")]
    assert seen([example("", "two"), example("", "three"), example("q", "b")], training) == 2
