"""Filling a store: compared with the live LLM, resumed at any moment, and no prompt encoded twice."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llm2slm import offline
from llm2slm.data.padding import padded
from llm2slm.data.reps.files import INT8_ERROR
from llm2slm.data.reps.store import RepsStore, llm_prompt
from llm2slm.data.reps.writer import StoreWriter
from llm2slm.data.tokenization.tokenizer import load_tokenizer
from llm2slm.models.build import build_model
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.models.loading.partial_loading import Layer
from llm2slm.models.stored_encoder import identity as identity_of
from llm2slm.models.stored_encoder import tokenizer_hash
from llm2slm.testing import tiny_model_config
from llm2slm.types import Batch, Example, StoreDtype, SystemKind, Tokenizers, UserError

WORDS = ["the", "old", "dog", "sees", "a", "house", "two", "little", "dogs", "see", "it", "no"]
RNG = random.Random(0)
TEXTS = [" ".join(RNG.choices(WORDS, k=RNG.randint(1, 12))) for _ in range(60)]
TEXTS += TEXTS[5:15]  # ten prompts occur twice

SYSTEMS: dict[str, tuple[str, str, str, Tokenizers, Layer]] = {
    "encoder": ("t5", "t5", "memory", Tokenizers.shared, None),
    "two layers": ("t5", "t5", "add", Tokenizers.offsets, [1, 2]),
    "middle layer, padded left": ("gpt2", "gpt2", "add", Tokenizers.shared, None),
    "llm tokens, padded left": ("gpt2", "gpt2", "add", Tokenizers.llm_tokens, [0, 3]),
    "scaled embeddings": ("gemma3", "t5", "add", Tokenizers.llm_tokens, -1),
}


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disables fsync: no power cut occurs in a test, and on a busy disk fsync would dominate its time."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def built(folder: Path, name: str = "encoder", **llm: Any) -> LLM2SLM:
    reader, slm, conditioning, tokenizers, layer = SYSTEMS[name]
    config = tiny_model_config(folder, reader, slm, conditioning, tokenizers)
    return build_model(replace(config, llm=replace(config.llm, layer=layer, **llm))).eval()


def encoded(model: LLM2SLM, texts: list[str] = TEXTS) -> list[Any]:
    return model.collator.encode([Example(i, text, text, "no") for i, text in enumerate(texts)])


def fill(folder: Path, model: LLM2SLM, rows: list[Any], **arguments: Any) -> RepsStore:
    with offline.open_writer(folder, model, **arguments) as store:
        offline.encode(model, rows, store, batch_tokens=100, progress=False)
    return RepsStore(folder)


def batches(model: LLM2SLM, rows: list[Any]) -> list[Batch]:
    return [model.collator(rows[i : i + 7]) for i in range(0, len(rows), 7)]


# Compared with the LLM


@pytest.mark.parametrize("name", SYSTEMS)
def test_stored_representations_equal_live_ones(tmp_path: Path, name: str) -> None:
    """Bit-identical in the encoded batches; in others as close as the LLM is to itself."""
    model = built(tmp_path, name)
    rows = encoded(model)
    store = fill(tmp_path / "store", model, rows, shard_bytes=9000)
    assert len(store.index.entries) > 1
    plan = list(offline.batches(list({tuple(ids): ids for ids in map(llm_prompt, rows)}.values()), 100))
    assert len(plan) > 5
    for batch in plan:
        live = model.encoder(*padded(batch, 0))
        found = store.reps_of(batch)
        assert torch.equal(found.reps_BPE, live.reps_BPE)
        assert torch.equal(found.mask_BP, live.mask_BP)
    seen_left = False
    for batch in batches(model, rows):
        live = model.represent(batch)
        found = store.reps(batch.llm_ids_BP, batch.llm_mask_BP, indices=batch.indices)
        assert found.mask_BP is batch.llm_mask_BP
        torch.testing.assert_close(found.reps_BPE, live.reps_BPE, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(model.logits(batch, found), model.logits(batch, live), rtol=1e-3, atol=1e-3)
        seen_left |= bool((batch.llm_mask_BP[:, 0] == 0).any())
    assert seen_left == ("left" in name)


@pytest.mark.parametrize("name", ["encoder", "two layers", "llm tokens, padded left"])
def test_narrower_dtypes_have_the_stated_error(tmp_path: Path, name: str) -> None:
    model = built(tmp_path, name)
    rows = encoded(model)
    exact = fill(tmp_path / "float32", model, rows)
    half = fill(tmp_path / "bfloat16", model, rows, dtype=StoreDtype.bfloat16)
    eighth = fill(tmp_path / "int8", model, rows, dtype=StoreDtype.int8)
    layers, largest_part = len(exact.layers), 0.0
    for batch in batches(model, rows):
        place = (batch.llm_ids_BP, batch.llm_mask_BP)
        right = exact.reps(*place).reps_BPE
        assert torch.equal(half.reps(*place).reps_BPE, right.bfloat16().float())
        error = (eighth.reps(*place).reps_BPE - right).unflatten(-1, (layers, -1)).abs()
        largest = right.unflatten(-1, (layers, -1)).abs().amax(-1, keepdim=True)
        assert (error <= INT8_ERROR * largest).all()
        largest_part = max(largest_part, float((error / largest.clamp(min=1e-9)).max()))
    assert largest_part > 0.9 * INT8_ERROR


def test_representations_of_a_bfloat16_encoder_are_stored_exactly(tmp_path: Path) -> None:
    """In a store of bfloat16 or float32 these values lose nothing."""
    model = built(tmp_path, dtype="bfloat16")
    rows = encoded(model)[:7]
    store = fill(tmp_path / "store", model, rows, dtype=StoreDtype.bfloat16)
    ids = [llm_prompt(row) for row in rows]
    batch = next(offline.batches(ids, 100))
    live = model.encoder(*padded(batch, 0)).reps_BPE
    assert live.dtype == torch.bfloat16
    assert torch.equal(store.reps_of(batch, dtype=torch.bfloat16).reps_BPE, live)
    assert torch.equal(fill(tmp_path / "wide", model, rows).reps_of(batch).reps_BPE, live.float())
    with pytest.raises(UserError, match=r"model\.llm\.dtype is 'bfloat16' in the store, 'float32' is required"):
        fill(tmp_path / "wide", built(tmp_path), rows)
    with pytest.raises(UserError, match="kept_as is 'float32' in the store, 'int8' is required"):
        fill(tmp_path / "wide", model, rows, dtype=StoreDtype.int8)


@pytest.mark.parametrize("name", ["llm tokens, padded left", "scaled embeddings"])
def test_embeddings_equal_those_of_the_encoder(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offline, "EMBEDDED", 64)
    model = built(tmp_path, name)
    with offline.open_writer(tmp_path / "store", model) as writer:
        for _ in range(2):
            offline.add_embeddings(model, writer)
    store = RepsStore(tmp_path / "store")
    for batch in batches(model, encoded(model)):
        assert torch.equal(store.embed(batch.slm_ids_BQ), model.encoder.embed(batch.slm_ids_BQ))
    table = model.encoder.body.get_input_embeddings()
    everything = torch.arange(table.num_embeddings).unsqueeze(0)
    assert torch.equal(store.embed(everything), model.encoder.embed(everything))
    bare = torch.equal(store.embed(everything)[0], table.weight)
    assert bare == (name != "scaled embeddings")
    assert store.embedding_width == model.encoder.embedding_width == store.embed(everything).shape[-1]


# Contents


def test_each_prompt_is_encoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = built(tmp_path)
    rows, read = encoded(model), []
    forward = model.encoder.forward
    monkeypatch.setattr(
        model.encoder, "forward", lambda ids, mask: (read.append(int(mask.sum())), forward(ids, mask))[1]
    )
    different = {tuple(llm_prompt(row)) for row in rows}
    with offline.open_writer(tmp_path / "store", model) as writer:
        first = offline.encode(model, rows[:30], writer, 100, progress=False)
        second = offline.encode(model, rows, writer, 100, progress=False)
        third = offline.encode(model, rows, writer, 100, progress=False)
    assert (first.rows, second.rows, third.rows) == (30, 70, 70)
    assert first.new == first.prompts == len({tuple(llm_prompt(row)) for row in rows[:30]})
    assert (second.prompts, second.new) == (len(different), len(different) - first.new)
    assert (third.prompts, third.new, third.new_tokens) == (len(different), 0, 0)
    assert len(RepsStore(tmp_path / "store")) == len(different) == 60 - (60 - len(set(TEXTS[:60])))
    assert sum(read) == sum(map(len, different)) == first.new_tokens + second.new_tokens


def test_batches_stay_within_the_budget_longest_first() -> None:
    rows = [[0] * (1 + 7 * i % 19) for i in range(50)] + [[1] * 200]
    plan = list(offline.batches(rows, 40))
    assert sorted(row for batch in plan for row in batch) == sorted(rows)
    lengths = [len(row) for batch in plan for row in batch]
    assert lengths == sorted(lengths, reverse=True)
    for batch, following in zip(plan, [*plan[1:], None], strict=True):
        assert len(batch) * len(batch[0]) <= 40 or len(batch) == 1
        assert following is None or (len(batch) + 1) * len(batch[0]) > 40


def test_insufficient_disk_space_is_reported_before_encoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = built(tmp_path)
    rows = encoded(model)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 7}))
    monkeypatch.setattr(model.encoder, "forward", lambda *_: pytest.fail("it was read"))
    with (
        offline.open_writer(tmp_path / "store", model) as writer,
        pytest.raises(UserError, match=r"store: [\d,]+ bytes are to be written \(as float32\), 7 bytes are free"),
    ):
        offline.encode(model, rows, writer, progress=False)


def test_progress_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = built(tmp_path)
    rows = encoded(model)
    with offline.open_writer(tmp_path / "store", model) as writer:
        done = offline.encode(model, rows, writer, 100)
    said = " ".join(capsys.readouterr().err.split())
    assert f"{done.new_tokens:,}/{done.new_tokens:,} tokens" in said
    assert "tokens/s" in said


def test_a_system_without_an_encoder_is_refused(tmp_path: Path) -> None:
    model = build_model(tiny_model_config(tmp_path, kind=SystemKind.slm))
    with pytest.raises(UserError, match=r"this system \(slm\) has none"):
        offline.open_writer(tmp_path / "store", model)


# Identity of the LLM


def test_the_identity_distinguishes_encoders(tmp_path: Path) -> None:
    """Each change of the LLM's inputs or settings changes it; a copy that is loaded again does not."""
    model = built(tmp_path, "two layers")
    rows = encoded(model)
    fill(tmp_path / "store", model, rows)

    def changed(**llm: Any) -> dict[str, Any]:
        other = built(tmp_path, "two layers", **llm)
        return identity_of(other.config.llm, other.encoder.layers, other.collator)

    known = changed()
    assert RepsStore(tmp_path / "store", known).identity == known
    assert known.keys() == {  # a key that both sides lack is not compared
        "name", "revision", "config", "init", "fingerprint", "dtype", "quantization", "weights", "settings", "layers",
        "tokenizer", "frame", "prompt_mark",
    }  # fmt: skip
    collator = model.collator
    weights = built(tmp_path, "two layers")
    with torch.no_grad():
        next(weights.encoder.parameters()).mul_(1.01)
    others = {
        "frame.before": changed(prefix="read: "),
        "model.llm.dtype": changed(dtype="bfloat16"),
        "model.llm.config.layer_norm_epsilon": changed(config={"layer_norm_epsilon": 0.5}),
        "prompt_mark": known | {"prompt_mark": "?"},
        "settings": known | {"settings": "0123456789ab"},
        "model.llm.init": known | {"init": "random"},
        "weights": known | {"weights": "0123456789ab"},
        "fingerprint": known | {"fingerprint": weights.encoder.fingerprint()},
        "tokenizer": known | {"tokenizer": tokenizer_hash(collator.slm_tokenizer)},
        "model.llm.layer": known | {"layers": [2]},
        "model.llm.revision": known | {"revision": "main"},
        "model.llm.name": known | {"name": "other/llm"},
        "model.llm.quantization.bits": known | {"quantization": {"bits": 8}},
    }
    for key, identity in others.items():
        with pytest.raises(UserError, match=f"[:;] {key} is .* in the store, .* is required"):
            RepsStore(tmp_path / "store", identity)


def test_the_identity_of_an_encoder_that_was_not_loaded(tmp_path: Path) -> None:
    model = built(tmp_path)
    fill(tmp_path / "store", model, encoded(model))
    record = {key: value for key, value in model.config.llm.items() if key not in ("fingerprint", "width")}
    unloaded = identity_of(record, [2], model.collator)
    store = RepsStore(tmp_path / "store", unloaded)
    assert store.identity["fingerprint"] == model.encoder.fingerprint()
    encoder = model.encoder
    assert (store.width, store.layers, store.embedding_width) == (encoder.width, [2], encoder.embedding_width)
    assert store.encoder_facts["blocks"] == encoder.blocks


def test_the_hash_of_a_tokenizer_is_unchanged_by_saving_and_use(tmp_path: Path) -> None:
    model = built(tmp_path, "two layers")
    tokenizer = model.collator.llm_tokenizer
    before = tokenizer_hash(tokenizer)
    tokenizer(["a", "a longer one"], padding=True, truncation=True, max_length=4)
    assert tokenizer_hash(tokenizer) == before
    tokenizer.save_pretrained(tmp_path / "saved")
    assert tokenizer_hash(load_tokenizer(str(tmp_path / "saved"))) == before


# Interrupted


def test_a_batch_that_is_split_between_shards_is_encoded_again(tmp_path: Path) -> None:
    """A filling that ended within a batch encodes the whole batch again, so that values are bit-identical."""
    model = built(tmp_path)
    rows = encoded(model)
    fill(tmp_path / "whole", model, rows, shard_bytes=3000)

    whole = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    cut = []
    for number in range(len(plan_of(rows))):
        folder = tmp_path / str(number)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(StoreWriter, "append", ending_after(number))
            with pytest.raises(Ended):
                fill(folder, model, rows, shard_bytes=3000)
        there = RepsStore(folder)
        assert not there.finished
        cut.append(any(0 < len(there.missing(batch)) < len(batch) for batch in plan_of(rows)))
        assert fill(folder, model, rows, shard_bytes=3000).finished
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole
    assert any(cut)  # otherwise nothing was tested


class Ended(BaseException):
    """Replaces the end of the process."""


def ending_after(batches: int) -> Any:
    """`StoreWriter.append` that ends after the given number of batches."""
    append, left = StoreWriter.append, iter(range(batches))

    def ending(self: StoreWriter, rows: Any, reps: Any) -> int:
        found = append(self, rows, reps)
        if next(left, None) is None:
            raise Ended
        return found

    return ending


def plan_of(rows: list[Any]) -> list[Any]:
    return list(offline.batches([list(ids) for ids in dict.fromkeys(tuple(llm_prompt(row)) for row in rows)], 100))


@pytest.mark.slow
def test_a_store_that_is_killed_twenty_times_is_completed(tmp_path: Path) -> None:
    """SIGKILL at random moments: no complete batch is lost, and the files are those of an undisturbed run."""
    root = Path(__file__).resolve().parents[1]
    env = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    script = [sys.executable, str(root / "tests" / "killed.py"), str(tmp_path), "20"]
    done = subprocess.run(script, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["killed"] == 20
    assert said["same"]
    assert all(said["same"])
    assert len({held for held in said["held"] if 0 < held < said["prompts"]}) >= 3  # not at the start or end
    assert not list(tmp_path.glob("*/*.part"))
