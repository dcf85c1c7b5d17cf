"""The cache of tokenized rows: what comes out is what went in, and nothing else is ever trusted."""

from __future__ import annotations

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from llm2slm.config import DataConfig
from llm2slm.data.collate import Collator
from llm2slm.data.datamodule import DataModule
from llm2slm.data.tasks import TASKS
from llm2slm.data.token_cache import FORMAT, TokenCache, entry_key
from llm2slm.data.tokenization import prompts
from llm2slm.data.tokenization.prompts import Frame
from llm2slm.data.tokenization.tokenizer import train_tokenizer
from llm2slm.types import Example, Overlong, UserError

TEXTS = ["The old dog sleeps.", "Two cats", "😀 über\nzwei Zeilen", "", "a b c d e f g h i j k l m n o p"]
EXAMPLES = [Example(i, text, f"say: {text}", text[::-1]) for i, text in enumerate(TEXTS)]


def test_the_rules_of_a_tokenizer_are_read_once(monkeypatch):
    """Of a vocabulary of 150,000 entries they take 1.5 s; each split asked for them three times."""
    tokenizer = train_tokenizer(["the old dog sleeps say"], 270)
    read, loads = [], json.loads
    monkeypatch.setattr(prompts.json, "loads", lambda text: read.append(1) or loads(text))
    first = prompts.content_of(tokenizer)
    assert prompts.content_of(tokenizer) == first
    assert len(read) == 1
    tokenizer.backend_tokenizer.enable_truncation(4)  # how it was called last decides nothing
    assert prompts.content_of(tokenizer) == first
    tokenizer.add_tokens(["<new>"])
    assert prompts.content_of(tokenizer) != first


@pytest.fixture(scope="module")
def tokenizers():
    return train_tokenizer(["the old dog sleeps say"], 270), train_tokenizer(["two cats say über"], 280)


def collators(writer, reader):
    """Every form that an encoded row has."""
    return {
        "alone": Collator(writer),
        "shared": Collator(writer, writer),
        "two": Collator(writer, reader),
        "spans": Collator(writer, reader, align=True),
        "reader's tokens": Collator(writer, reader, llm_prompts=True),
        "frame": Collator(writer, reader, align=True, llm_frame=Frame("Read: ", " End.")),
        "frame alone": Collator(writer, llm_frame=Frame("Read: ")),
        "decoder": Collator(writer, reader, decoder_only=True, align=True),
        "taught": Collator(writer).with_teacher(Collator(reader)),
        "taught in a frame": Collator(writer, reader).with_teacher(
            Collator(reader, llm_frame=Frame("Read: ", " End."))
        ),
    }


FORMS = list(collators(*[train_tokenizer(["a"], 258)] * 2))


@pytest.mark.parametrize("form", FORMS)
def test_rows_come_back_as_they_went_in(tokenizers, tmp_path, form):
    collator, cache = collators(*tokenizers)[form], TokenCache(tmp_path)
    rows, key = collator.tokenized(EXAMPLES), entry_key(collator, EXAMPLES)
    assert cache.load(key, EXAMPLES) is None
    cache.save(key, rows)
    back = cache.load(key, EXAMPLES)
    assert back == rows
    assert [type(x) for row in back for x in row.slm] == [int for row in rows for _ in row.slm]
    assert collator.fitted(back) == collator.encode(EXAMPLES)
    if rows[0].slm_spans is not None:
        assert {type(s) for row in back for s in row.slm_spans.special} == {bool}


def test_no_two_readings_share_a_name(tokenizers):
    writer, reader = tokenizers
    forms = collators(writer, reader)
    rows = {form: collator.tokenized(EXAMPLES) for form, collator in forms.items()}
    keys = {form: entry_key(collator, EXAMPLES) for form, collator in forms.items()}
    # these two read one prompt by one tokenizer; and that one ends a prompt itself, so that a decoder needs no mark
    for form, same in (("shared", "alone"), ("decoder", "spans")):
        assert rows.pop(form) == rows[same]
        assert keys.pop(form) == keys[same]
    keys["roles changed"] = entry_key(Collator(reader, writer), EXAMPLES)
    keys["other frame"] = entry_key(Collator(writer, reader, align=True, llm_frame=Frame("Read: ", " End")), EXAMPLES)
    twin = train_tokenizer(["the old dog sleeps say"], 270)  # a reader that reads the same, but prompts of its own
    keys["twice"] = entry_key(Collator(writer, twin), EXAMPLES)
    keys["fewer"] = entry_key(Collator(writer), EXAMPLES[:-1])
    keys["other target"] = entry_key(Collator(writer), [Example(0, "", "a", "bc")])
    keys["moved border"] = entry_key(Collator(writer), [Example(0, "", "ab", "c")])
    keys["one row of two"] = entry_key(Collator(writer), [Example(0, "", "ab", ""), Example(1, "", "c", "")])
    changed = train_tokenizer(["the old dog sleeps say"], 270)
    changed.add_tokens(["sleeps"])
    keys["added token"] = entry_key(Collator(changed), EXAMPLES)
    changed.split_special_tokens = False
    keys["special tokens in texts"] = entry_key(Collator(changed), EXAMPLES)
    writer.backend_tokenizer.post_processor, own = None, writer.backend_tokenizer.post_processor
    try:
        keys["no end"], keys["an end of ours"] = (
            entry_key(Collator(writer, decoder_only=decoder), EXAMPLES) for decoder in (False, True)
        )
    finally:
        writer.backend_tokenizer.post_processor = own
    assert len(set(keys.values())) == len(keys)


def test_what_changes_nothing_changes_no_name(tokenizers):
    writer, reader = tokenizers
    same = train_tokenizer(["the old dog sleeps say"], 270)  # another object
    key = entry_key(Collator(writer, reader), EXAMPLES)
    assert entry_key(Collator(same, reader), EXAMPLES) == key
    same(["a b c d"], truncation=True, max_length=2, padding="max_length")  # leaves its traces in the tokenizer
    assert entry_key(Collator(same, reader), EXAMPLES) == key
    limits = {"max_prompt_tokens": 3, "max_response_tokens": 2, "overlong": Overlong.truncate}
    assert entry_key(Collator(writer, reader, **limits), EXAMPLES) == key


def test_a_slow_tokenizer_is_not_cached(tokenizers, monkeypatch):
    monkeypatch.setattr(type(tokenizers[0]), "is_fast", False)
    assert entry_key(Collator(tokenizers[0]), EXAMPLES) is None


# In the data module


@pytest.fixture
def files(tmp_path):
    rows = [{"source": "w" * (1 + i * 7 % 19), "target": f"t{i}" + "x" * (i * 5 % 11)} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def module(files, tokenizer, cache="tokens", **limits):
    folder = None if cache is None else str(files / cache)
    config = DataConfig(name="json", train=str(files / "rows.jsonl"), cache=folder)
    return DataModule(config, TASKS["instruction"], Collator(tokenizer, **limits), 1)


def untimed(data):
    return {split: told | {"seconds": None} for split, told in data.report().items()}


def never(*_):
    raise AssertionError("tokenized, though it was in the cache")


@pytest.mark.parametrize("overlong", [Overlong.truncate, Overlong.drop])
def test_a_second_run_does_not_tokenize(files, tokenizers, monkeypatch, overlong):
    """Nor does one with other limits; rows and counts are those of a run without a cache."""
    module(files, tokenizers[0]).encoded("train")
    monkeypatch.setattr(Collator, "tokenized", never)
    assert len(module(files, tokenizers[0]).encoded("train")) == 40
    limits = {"max_prompt_tokens": 12, "max_response_tokens": 8, "overlong": overlong}
    cached = module(files, tokenizers[0], **limits)
    rows = cached.encoded("train")
    with pytest.raises(UserError, match=r"^data=json, train, row 2 \(from 0\): its response has 13, at most 8"):
        module(files, tokenizers[0], max_response_tokens=8).encoded("train")
    monkeypatch.undo()
    plain = module(files, tokenizers[0], cache=None, **limits)
    assert plain.encoded("train") == rows
    assert untimed(plain) == untimed(cached)
    assert cached.examples("train") == plain.examples("train")
    assert 0 < untimed(cached)["train"]["overlong_prompts"] < 40
    assert [path.suffix for path in (files / "tokens").iterdir()] == [".tokens"]


def test_where_the_folder_is(files, tokenizers, monkeypatch):
    module(files, tokenizers[0], cache=None).encoded("train")
    assert [path.name for path in files.iterdir()] == ["rows.jsonl"]
    assert TokenCache.of(DataConfig(cache=None)) is None
    monkeypatch.setenv("LLM2SLM_CACHE", "/elsewhere")
    assert TokenCache.of(DataConfig()).folder == Path("/elsewhere")
    assert TokenCache.of(DataConfig(cache="~/own")).folder == Path.home() / "own"
    monkeypatch.delenv("LLM2SLM_CACHE")
    assert TokenCache.of(DataConfig()).folder == Path.home() / ".cache" / "llm2slm"


# What is on the disk is not trusted


def flipped(content):
    middle = len(content) - 9
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGE = {
    "a bit": flipped,
    "cut": lambda content: content[: len(content) // 2],
    "longer": lambda content: content + b"\0",
    "empty": lambda _: b"",
    "no entry": lambda _: b"something else\n",
    "earlier form": lambda content: content.replace(FORMAT, b"llm2slm tokens 0 "),
    "its head alone": lambda content: content[: content.index(b"\n") + 1],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_is_made_anew(files, tokenizers, capsys, damage):
    rows = module(files, tokenizers[0]).encoded("train")
    [path] = (files / "tokens").iterdir()
    whole = path.read_bytes()
    path.write_bytes(DAMAGE[damage](whole))
    assert module(files, tokenizers[0]).encoded("train") == rows
    assert capsys.readouterr().err == f"llm2slm: {path}: is damaged: tokenizing again\n"
    assert path.read_bytes() == whole
    assert module(files, tokenizers[0]).encoded("train") == rows
    assert capsys.readouterr().err == ""


def test_an_entry_under_anothers_name_is_not_taken(tokenizers, tmp_path, capsys):
    """Whole in itself, and of as many rows: only the name that its checksum holds tells."""
    collator, cache = Collator(tokenizers[0]), TokenCache(tmp_path)
    others = [Example(e.index, e.source, e.prompt + "?", e.target) for e in EXAMPLES]
    cache.save(entry_key(collator, others), collator.tokenized(others))
    key = entry_key(collator, EXAMPLES)
    next(tmp_path.iterdir()).rename(tmp_path / f"{key}.tokens")
    assert cache.load(key, EXAMPLES) is None
    assert "is damaged" in capsys.readouterr().err


def test_who_is_stopped_while_writing_leaves_no_entry(tokenizers, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    collator, cache = Collator(tokenizers[0]), TokenCache(tmp_path)
    for place in ("fsync", "replace"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(os, "fsync", stop) if place == "fsync" else patch.setattr(Path, "replace", stop)
            cache.save("key", collator.tokenized(EXAMPLES))
        assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_and_what_nobody_reads_is_removed(tokenizers, tmp_path):
    collator, cache = Collator(tokenizers[0]), TokenCache(tmp_path)
    ages = {"dead.part": 2, "alive.part": 0.5, "old.tokens": 91, "read.tokens": 89, "mine.txt": 999}
    for name, days in ages.items():
        (tmp_path / name).write_bytes(b"x")
        os.utime(tmp_path / name, (time.time() - days * 86_400,) * 2)
    key = entry_key(collator, EXAMPLES)
    cache.save(key, collator.tokenized(EXAMPLES))
    names = {"alive.part", "read.tokens", "mine.txt", f"{key}.tokens"}
    assert {path.name for path in tmp_path.iterdir()} == names
    path = tmp_path / f"{key}.tokens"
    os.utime(path, (time.time() - 91 * 86_400,) * 2)
    assert cache.load(key, EXAMPLES) is not None  # and is used
    cache.save("other", collator.tokenized(EXAMPLES))
    assert path.exists()


def test_several_at_once_never_see_a_half(tokenizers, tmp_path, capsys):
    collator = Collator(tokenizers[0])
    many = [Example(i, "", "word " * 40, "answer") for i in range(300)]
    rows, key = collator.tokenized(many), entry_key(collator, many)

    def run(number):
        cache = TokenCache(tmp_path)
        for _ in range(6):
            if number % 2:
                cache.save(key, rows)
            elif (found := cache.load(key, many)) is not None:
                assert found == rows
        return True

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(run, range(6)))
    assert capsys.readouterr().err == ""
    assert [path.name for path in tmp_path.iterdir()] == [f"{key}.tokens"]


def test_a_folder_that_cannot_be_written_is_told_and_done_without(files, tokenizers, capsys):
    (files / "tokens").write_text("a file")
    assert len(module(files, tokenizers[0]).encoded("train")) == 40
    told = capsys.readouterr().err.splitlines()
    assert told[-1] == f"llm2slm: data.cache={files / 'tokens'}: cannot be written (File exists): tokens are not kept"
    assert all(line.startswith(f"llm2slm: {files / 'tokens'}") for line in told[:-1])
