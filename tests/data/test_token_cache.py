"""The cache of tokenized rows: entries are loaded as saved, and invalid ones are never used."""

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
    """For a vocabulary of 150,000 entries this takes 1.5 s, and each split requires them three times."""
    tokenizer = train_tokenizer(["the old dog sleeps say"], 270)
    read, loads = [], json.loads
    monkeypatch.setattr(prompts.json, "loads", lambda text: read.append(1) or loads(text))
    first = prompts.content_of(tokenizer)
    assert prompts.content_of(tokenizer) == first
    assert len(read) == 1
    tokenizer.backend_tokenizer.enable_truncation(4)  # settings of the last call do not matter
    assert prompts.content_of(tokenizer) == first
    tokenizer.add_tokens(["<new>"])
    assert prompts.content_of(tokenizer) != first


@pytest.fixture(scope="module")
def tokenizers():
    return train_tokenizer(["the old dog sleeps say"], 270), train_tokenizer(["two cats say über"], 280)


def collators(slm, llm):
    """Every form that an encoded row has."""
    return {
        "alone": Collator(slm),
        "shared": Collator(slm, slm),
        "two": Collator(slm, llm),
        "spans": Collator(slm, llm, align=True),
        "LLM tokens": Collator(slm, llm, llm_prompts=True),
        "frame": Collator(slm, llm, align=True, llm_frame=Frame("Read: ", " End.")),
        "frame alone": Collator(slm, llm_frame=Frame("Read: ")),
        "decoder": Collator(slm, llm, decoder_only=True, align=True),
        "taught": Collator(slm).with_teacher(Collator(llm)),
        "taught in a frame": Collator(slm, llm).with_teacher(Collator(llm, llm_frame=Frame("Read: ", " End."))),
    }


FORMS = list(collators(*[train_tokenizer(["a"], 258)] * 2))


@pytest.mark.parametrize("form", FORMS)
def test_rows_are_loaded_as_saved(tokenizers, tmp_path, form):
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


def test_different_encodings_have_different_keys(tokenizers):
    slm, llm = tokenizers
    forms = collators(slm, llm)
    rows = {form: collator.tokenized(EXAMPLES) for form, collator in forms.items()}
    keys = {form: entry_key(collator, EXAMPLES) for form, collator in forms.items()}
    # both encode one prompt with one tokenizer; and that one ends a prompt, so that a decoder needs no end mark
    for form, same in (("shared", "alone"), ("decoder", "spans")):
        assert rows.pop(form) == rows[same]
        assert keys.pop(form) == keys[same]
    keys["roles changed"] = entry_key(Collator(llm, slm), EXAMPLES)
    keys["other frame"] = entry_key(Collator(slm, llm, align=True, llm_frame=Frame("Read: ", " End")), EXAMPLES)
    twin = train_tokenizer(["the old dog sleeps say"], 270)  # the same encoding, but separate prompts
    keys["twice"] = entry_key(Collator(slm, twin), EXAMPLES)
    keys["fewer"] = entry_key(Collator(slm), EXAMPLES[:-1])
    keys["other target"] = entry_key(Collator(slm), [Example(0, "", "a", "bc")])
    keys["moved border"] = entry_key(Collator(slm), [Example(0, "", "ab", "c")])
    keys["one row of two"] = entry_key(Collator(slm), [Example(0, "", "ab", ""), Example(1, "", "c", "")])
    changed = train_tokenizer(["the old dog sleeps say"], 270)
    changed.add_tokens(["sleeps"])
    keys["added token"] = entry_key(Collator(changed), EXAMPLES)
    changed.split_special_tokens = False
    keys["special tokens in texts"] = entry_key(Collator(changed), EXAMPLES)
    slm.backend_tokenizer.post_processor, own = None, slm.backend_tokenizer.post_processor
    try:
        keys["no end"], keys["an end of ours"] = (
            entry_key(Collator(slm, decoder_only=decoder), EXAMPLES) for decoder in (False, True)
        )
    finally:
        slm.backend_tokenizer.post_processor = own
    assert len(set(keys.values())) == len(keys)


def test_settings_without_effect_do_not_change_the_key(tokenizers):
    slm, llm = tokenizers
    same = train_tokenizer(["the old dog sleeps say"], 270)  # another object
    key = entry_key(Collator(slm, llm), EXAMPLES)
    assert entry_key(Collator(same, llm), EXAMPLES) == key
    same(["a b c d"], truncation=True, max_length=2, padding="max_length")  # changes the state of the tokenizer
    assert entry_key(Collator(same, llm), EXAMPLES) == key
    limits = {"max_prompt_tokens": 3, "max_response_tokens": 2, "overlong": Overlong.truncate}
    assert entry_key(Collator(slm, llm, **limits), EXAMPLES) == key


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
    """Neither does a run with other limits; rows and counts are those of a run without a cache."""
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


def test_the_folder_follows_the_configuration_and_the_environment(files, tokenizers, monkeypatch):
    module(files, tokenizers[0], cache=None).encoded("train")
    assert [path.name for path in files.iterdir()] == ["rows.jsonl"]
    assert TokenCache.of(DataConfig(cache=None)) is None
    monkeypatch.setenv("LLM2SLM_CACHE", "/elsewhere")
    assert TokenCache.of(DataConfig()).folder == Path("/elsewhere")
    assert TokenCache.of(DataConfig(cache="~/own")).folder == Path.home() / "own"
    monkeypatch.delenv("LLM2SLM_CACHE")
    assert TokenCache.of(DataConfig()).folder == Path.home() / ".cache" / "llm2slm"


# Damaged entries


def flipped(content):
    middle = len(content) - 9
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGE = {
    "flipped bit": flipped,
    "truncated": lambda content: content[: len(content) // 2],
    "longer": lambda content: content + b"\0",
    "empty": lambda _: b"",
    "no entry": lambda _: b"something else\n",
    "earlier format": lambda content: content.replace(FORMAT, b"llm2slm tokens 0 "),
    "header only": lambda content: content[: content.index(b"\n") + 1],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_is_replaced(files, tokenizers, capsys, damage):
    rows = module(files, tokenizers[0]).encoded("train")
    [path] = (files / "tokens").iterdir()
    whole = path.read_bytes()
    path.write_bytes(DAMAGE[damage](whole))
    assert module(files, tokenizers[0]).encoded("train") == rows
    assert capsys.readouterr().err == f"llm2slm: {path}: is damaged: tokenizing again\n"
    assert path.read_bytes() == whole
    assert module(files, tokenizers[0]).encoded("train") == rows
    assert capsys.readouterr().err == ""


def test_an_entry_under_another_key_is_not_used(tokenizers, tmp_path, capsys):
    """It is complete and has as many rows; only the key in its checksum differs."""
    collator, cache = Collator(tokenizers[0]), TokenCache(tmp_path)
    others = [Example(e.index, e.source, e.prompt + "?", e.target) for e in EXAMPLES]
    cache.save(entry_key(collator, others), collator.tokenized(others))
    key = entry_key(collator, EXAMPLES)
    next(tmp_path.iterdir()).rename(tmp_path / f"{key}.tokens")
    assert cache.load(key, EXAMPLES) is None
    assert "is damaged" in capsys.readouterr().err


def test_an_interrupted_write_leaves_no_entry(tokenizers, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    collator, cache = Collator(tokenizers[0]), TokenCache(tmp_path)
    for place in ("fsync", "replace"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(os, "fsync", stop) if place == "fsync" else patch.setattr(Path, "replace", stop)
            cache.save("key", collator.tokenized(EXAMPLES))
        assert list(tmp_path.iterdir()) == []


def test_partial_files_of_killed_processes_and_unused_entries_are_removed(tokenizers, tmp_path):
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
    assert cache.load(key, EXAMPLES) is not None  # marks it as used
    cache.save("other", collator.tokenized(EXAMPLES))
    assert path.exists()


def test_concurrent_threads_never_load_a_partial_entry(tokenizers, tmp_path, capsys):
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


def test_a_folder_that_cannot_be_written_is_reported_and_not_used(files, tokenizers, capsys):
    (files / "tokens").write_text("a file")
    assert len(module(files, tokenizers[0]).encoded("train")) == 40
    told = capsys.readouterr().err.splitlines()
    assert told[-1] == f"llm2slm: data.cache={files / 'tokens'}: cannot be written (File exists): tokens are not kept"
    assert all(line.startswith(f"llm2slm: {files / 'tokens'}") for line in told[:-1])
