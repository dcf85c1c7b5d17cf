"""Texts that are not decoded exactly from their tokens, with tokenizers whose losses are known."""

from __future__ import annotations

import json

import pytest

from llm2slm.config import DataConfig
from llm2slm.data import statistics
from llm2slm.data.collate import Collator
from llm2slm.data.datamodule import DataModule
from llm2slm.data.tasks import TASKS
from llm2slm.data.tokenization.prompts import Frame
from llm2slm.data.tokenization.round_trip import TEXTS, counts, difference, first_lost, marked
from llm2slm.data.tokenized_corpus import OverlongRows
from llm2slm.types import Example, Overlong
from tests.data.kinds import KINDS

WHOLE = "The big farmer"
LOSSES = {
    "a newline": "The\nbig",
    "two spaces": "The  big",
    "braces": "The {big}",
    "another script": "The 漢",
}
LOST_BY = {"t5": 4, "xlmr": 4, "llama": 0, "bytes_bpe": 0}


def examples(*targets: str, prompt: str = WHOLE) -> list[Example]:
    return [Example(10 + i, prompt, prompt, target) for i, target in enumerate(targets)]


def lost(collator: Collator, rows: list[Example]) -> list[int]:
    return [row.lost for row in marked(collator, collator.tokenized(rows), rows)]


@pytest.mark.parametrize("kind", LOST_BY)
def test_lossy_responses_are_detected(kind: str) -> None:
    rows = examples(WHOLE, *LOSSES.values(), f" {WHOLE}\n ")
    found = lost(Collator(KINDS[kind]()), rows)
    assert [bit & TEXTS["response"] for bit in found] == [0, *[int(LOST_BY[kind] > 0)] * 4, 0]
    assert not any(bit & ~TEXTS["response"] for bit in found)


def test_prompts_are_checked_with_each_tokenizer_that_encodes_them() -> None:
    whole, loses = KINDS["bytes_bpe"](), KINDS["t5"]()
    row = examples(WHOLE, prompt="The\nbig")
    assert lost(Collator(whole, whole), row) == [0]
    assert lost(Collator(whole, loses), row) == [TEXTS["llm_prompt"]]
    assert lost(Collator(loses, whole), row) == [TEXTS["prompt"]]
    assert lost(Collator(loses, whole), examples("a\nb", prompt="a\nb")) == [TEXTS["prompt"] + TEXTS["response"]]
    for frame in (Frame(prefix="Read:\n"), Frame("<a>\n", " {end}")):  # losses of a frame are not counted
        assert lost(Collator(whole, loses, llm_frame=frame), examples(WHOLE)) == [0]
        assert lost(Collator(whole, loses, llm_frame=frame), row) == [TEXTS["llm_prompt"]]
    marked_end = Collator(whole, decoder_only=True)
    assert marked_end.marks_end and lost(marked_end, row) == [0]


def test_lossy_texts_are_counted_and_the_first_difference_is_stated() -> None:
    collator = Collator(KINDS["t5"](), KINDS["bytes_bpe"]())
    texts = [WHOLE, "The big farmer sells old houses if {true}\nnow", "old\thouses"]
    rows = examples(*texts)
    found = marked(collator, collator.tokenized(rows), rows)
    assert counts(found) == {"response": 2, "prompt": 0, "llm_prompt": 0}
    assert (first_lost(found, "response"), first_lost(found, "prompt")) == (11, None)
    assert difference(collator, rows[1], "response") == (
        "...'s old houses if {true}\\nnow' is read back as ...'s old houses if true now'"
    )
    assert difference(collator, rows[2], "response") == "'old\\thouses' is read back as 'old houses'"
    framed = Collator(KINDS["bytes_bpe"](), KINDS["t5"](), llm_frame=Frame(prefix="The\n"))
    (row,) = examples("a", prompt="old\thouses")
    assert difference(framed, row, "llm_prompt") == "'old\\thouses' is read back as 'old houses'"


def module(folder, collator: Collator, **rows: list[str]) -> DataModule:
    for split, targets in rows.items():
        lines = [json.dumps({"source": WHOLE, "target": target}) for target in targets]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    files = {split: str(folder / f"{split}.jsonl") for split in rows}
    config = DataConfig(name="json", cache=str(folder / "cache"), **files)
    return DataModule(config, TASKS["instruction"], collator, 1)


def test_a_data_module_counts_lossy_rows_and_its_cache_stores_the_counts(tmp_path, monkeypatch) -> None:
    targets = [WHOLE, "a\nb", "a " * 30 + "\n\nb", "{a}"]
    limits = {"max_response_tokens": 20, "overlong": Overlong.drop}
    reports = []
    for _ in range(2):
        data = module(tmp_path, Collator(KINDS["t5"](), **limits), train=targets)
        data.prepare("train")
        reports.append({key: value for key, value in data.report()["train"].items() if key != "seconds"})
        assert data.lost == {"train": {"response": 1}}
        monkeypatch.setattr(Collator, "decode", None)  # the second time they come from the cache
    assert reports[0] == reports[1]
    assert (reports[0]["lost_responses"], reports[0]["lost_prompts"], reports[0]["dropped"]) == (2, 0, 1)


def test_all_rows_are_counted_before_an_overlong_row_is_an_error(tmp_path) -> None:
    data = module(tmp_path, Collator(KINDS["t5"](), max_response_tokens=5), train=["a", "a " * 9, "old", "a " * 12])
    with pytest.raises(OverlongRows) as caught:
        data.prepare("train")
    assert str(caught.value).startswith(
        "data=json, train, row 1 (from 0): its response has 19, at most 5 are allowed; too long in train: 0 of 4 "
        "prompts, 2 of 4 responses; raise data.max_prompt_tokens"
    )
    told = data.report()["train"]
    assert (told["rows"], told["overlong_prompts"], told["overlong_responses"], told["dropped"]) == (4, 0, 2, 0)
    assert told["tokens"]["response"]["max"] == 25


def test_tokens_per_byte_do_not_depend_on_the_frame() -> None:
    """One token per byte for every frame; é has two bytes."""
    class_ = KINDS["bytes_bpe"]()
    rows = [Example(0, "", "#" * 400, "é" * 300)]
    for frame in (None, Frame(prefix="The old, big farmer "), Frame("<|im_start|>", "<|im_end|>")):
        collator = Collator(KINDS["t5"](), class_, llm_frame=frame)
        found = statistics.tokens_per_byte(collator.tokenized(rows), rows, collator)
        assert found["llm_prompt"] == pytest.approx(1.0, abs=0.01)
        assert found["prompt"] == pytest.approx(1.0, abs=0.01)
    collator = Collator(class_)
    assert statistics.tokens_per_byte(collator.tokenized(rows), rows, collator)["response"] == 1.0
    few = [Example(0, "", "#" * 100, "a" * 100)]
    assert statistics.tokens_per_byte(collator.tokenized(few), few, collator) == {}  # too little text
