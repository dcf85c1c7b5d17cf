"""`llm2slm encode`, and training from its store: without the LLM's weights, and with the losses of live training.

A float32 store holds the representations bit for bit (`tests/test_offline.py`). Live training computes them in batches
of other shapes, in which matrix products may round differently: losses are close, not equal.
"""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from sampling import first_few, representatives
from tiny_runs import tiny_run

from llm2slm.commands.encode import run as encode
from llm2slm.commands.train import run as train
from llm2slm.config import DataConfig, RunConfig
from llm2slm.data.datamodule import DataModule
from llm2slm.data.reps.store import RepsStore
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.testing import write_tiny_t5
from llm2slm.types import Init, Overlong, StoreDtype, SystemKind, Tokenizers, UserError


def encoding(root: Path, llm: str = "t5", slm: str = "t5", mode: str = "add", dtype: str = "float32") -> RunConfig:
    config = tiny_run(root, llm=llm, slm=slm, mode=mode)
    config.encode.dtype = StoreDtype(dtype)
    config.trainer.threads = 1
    return config


@pytest.mark.parametrize(
    ("llm", "slm", "mode", "tokenizers"),
    representatives(
        [
            ("t5", "t5", "add", "shared"),
            ("gpt2", "gpt2", "prepend", "offsets"),
            ("t5", "gpt2", "cross_attention", "llm_tokens"),
        ],
        [("gpt2", "gpt2", "prepend", "offsets")],
    ),
)
def test_training_from_the_store_equals_training_with_the_llm(
    tmp_path: Path, llm: str, slm: str, mode: str, tokenizers: str
) -> None:
    def config() -> RunConfig:
        made = encoding(tmp_path, llm, slm, mode)
        made.model.tokenizers = Tokenizers(tokenizers)
        return made

    live = train(config(), tmp_path / "live")
    encode(config(), tmp_path / "kept")
    stored = config()
    stored.data.reps = str(tmp_path / "kept" / "reps")
    weights = Path(stored.model.llm.name) / "model.safetensors"
    shutil.move(weights, tmp_path / "gone")  # no longer readable
    found = train(stored, tmp_path / "stored")
    assert_same_losses(tmp_path / "live", tmp_path / "stored")
    assert found.systems[0].quality == live.systems[0].quality
    assert found.systems[0].parameters == live.systems[0].parameters  # the LLM counts, loaded or not
    answers = [(tmp_path / name / "predictions.jsonl").read_text() for name in ("live", "stored")]
    assert answers[0] == answers[1]
    shutil.move(tmp_path / "gone", weights)
    texts = ["the little dog sees", "two dogs"]
    models = [LLM2SLM.from_pretrained(tmp_path / name / "model") for name in ("live", "stored")]
    assert models[0].generate_text(texts, max_new_tokens=6) == models[1].generate_text(texts, max_new_tokens=6)


def losses(folder: Path) -> list[tuple[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [(row["train/loss"], row["val/loss"]) for row in csv.DictReader(file)]


def assert_same_losses(live: Path, stored: Path) -> None:
    """All values, within float32 rounding: a wrong representation differs by far more (see the test below)."""
    numbers = [[float(a or "nan") for row in losses(folder) for a in row] for folder in (live, stored)]
    assert numbers[1] == pytest.approx(numbers[0], rel=1e-5, nan_ok=True)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "near"), representatives([("bfloat16", 0.02), ("int8", 0.02)], [("int8", 0.02)]))
def test_stores_of_lower_precision_give_nearly_the_same_losses(tmp_path: Path, dtype: str, near: float) -> None:
    train(encoding(tmp_path), tmp_path / "live")
    encode(encoding(tmp_path, dtype=dtype), tmp_path / "kept")
    config = encoding(tmp_path)
    config.data.reps = str(tmp_path / "kept" / "reps")
    train(config, tmp_path / "stored")
    pairs = list(zip(losses(tmp_path / "live"), losses(tmp_path / "stored"), strict=True))
    with pytest.raises(AssertionError):  # else nothing was rounded, or the test above cannot fail
        assert_same_losses(tmp_path / "live", tmp_path / "stored")
    for one, other in pairs:
        for a, b in zip(one, other, strict=True):
            assert (a == "") == (b == "") and (a == "" or float(a) == pytest.approx(float(b), rel=near))


@pytest.mark.parametrize(
    ("change", "said"),
    first_few(
        [
            (lambda c: setattr(c.model.llm, "layer", 1), r"model\.llm\.layer is \[2\] in the store, \[1\] is required"),
            (
                lambda c: setattr(c.model.llm, "dtype", "bfloat16"),
                r"model\.llm\.dtype is 'float32' in the store, 'bfloat16'",
            ),
            (lambda c: setattr(c.model.llm, "prefix", "the "), r"frame.before is '' in the store, 'the '"),
            (lambda c: setattr(c.model.llm, "init", Init.random), r"init is 'pretrained' in the store, 'random'"),
            (
                lambda c: write_tiny_t5(c.model.llm.name, seed=9, width=24),
                r"weights is '\w+' in the store, '\w+' is req",
            ),
            (
                lambda c: edit(c.model.llm.name, layer_norm_epsilon=0.5),
                r"settings is '\w+' in the store, '\w+' is req",
            ),
            (
                lambda c: setattr(c.data, "reps", str(Path(c.data.reps).parent)),
                r"kept: is no store of representations \(no store\.json\); give the one in it, .*/kept/reps$",
            ),
            (
                lambda c: setattr(c.task, "prefix", "see: "),
                r"40 of 40 prompts of train are not in this store, the first",
            ),
            (
                lambda c: other_row(c, "train"),
                r"1 of 40 prompts of train are not in this store, the first is that of row 7 ",
            ),
            (
                lambda c: other_row(c, "test"),
                r"1 of 6 prompts of test are not in this store, the first is that of row 2 ",
            ),
            (lambda c: cut(c.data), r"\d+ of 40 prompts of train are not in this store"),
            (lambda c: setattr(c.model, "tokenizers", Tokenizers.llm_tokens), "has no embedding matrix of the LLM"),
            (lambda c: flip(c.data.reps, key=True), r"shard-00000\.safetensors is not as written \(sha256 differs"),
            (lambda c: flip(c.data.reps), r"shard-00000\.safetensors is not as written \(sha256 differs"),
        ],
        6,
    ),
)
def test_a_store_of_other_representations_is_refused_before_training(tmp_path: Path, change: Any, said: str) -> None:
    encode(encoding(tmp_path), tmp_path / "kept")
    config = encoding(tmp_path)
    config.data.reps = str(tmp_path / "kept" / "reps")
    change(config)
    with pytest.raises(UserError, match=said):
        train(config, tmp_path / "never")
    assert not (tmp_path / "never").exists()


def other_row(config: RunConfig, split: str) -> None:
    """Changes the prompt of one row after the store was filled."""
    path = Path(getattr(config.data, split))
    rows = path.read_text().splitlines()
    rows[7 if split == "train" else 2] = json.dumps({"source": "dogs dogs house", "target": "it"})
    setattr(config.data, split, str(path.with_name("other.jsonl")))
    path.with_name("other.jsonl").write_text("\n".join(rows) + "\n")


def edit(model: str, **values: Any) -> None:
    """Changes the configuration of a model, not its weights."""
    path = Path(model) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def cut(data: DataConfig) -> None:
    data.max_prompt_tokens, data.overlong = 6, Overlong.truncate


def flip(store: str, key: bool = False) -> None:
    """Flips one bit of a value, or of a prompt's key."""
    first = RepsStore(store).keys(0, 1)[0]
    path = Path(store) / "shard-00000.safetensors"
    content = bytearray(path.read_bytes())
    content[content.index(first) if key else len(content) // 2] ^= 4
    path.write_bytes(content)


@pytest.mark.slow
def test_one_store_serves_all_systems_with_the_same_prompts(tmp_path: Path) -> None:
    """Another conditioning lowers the maximum prompt length of an SLM with positions, and the LLM may have moved:
    neither changes the representations of a prompt that fits."""
    encode(encoding(tmp_path, slm="gpt2", mode="add"), tmp_path / "kept")
    config = encoding(tmp_path, slm="gpt2", mode="prepend")
    moved = tmp_path / "moved"
    shutil.move(config.model.llm.name, moved)
    config.model.llm.name = str(moved)
    edit(config.model.llm.name, transformers_version="9.9.9", dtype="bfloat16")  # metadata, without effect on outputs
    live = train(config, tmp_path / "live")
    config.data.reps = str(tmp_path / "kept" / "reps")
    found = train(config, tmp_path / "stored")
    assert_same_losses(tmp_path / "live", tmp_path / "stored")
    assert found.systems[0].quality == live.systems[0].quality
    with (moved / "model.safetensors").open("r+b") as file:
        file.seek(-40, 2)
        file.write(b"other weights")
    with pytest.raises(UserError, match=r"name is '.*llm_t5' in the store, '.*moved' is required; weights is"):
        train(config, tmp_path / "never")


@pytest.mark.slow
def test_a_tokenizer_trained_on_demand_is_supported(tmp_path: Path) -> None:
    """The same overrides encode and train."""

    def config() -> RunConfig:
        made = encoding(tmp_path)
        made.model.tokenizers, made.model.slm.tokenizer = Tokenizers.offsets, "train:300"
        made.model.slm.init, made.model.slm.config = Init.random, {}
        return made

    live = train(config(), tmp_path / "live")
    encode(config(), tmp_path / "kept")
    stored = config()
    stored.data.reps = str(tmp_path / "kept" / "reps")
    assert train(stored, tmp_path / "stored").systems[0].quality == live.systems[0].quality
    assert_same_losses(tmp_path / "live", tmp_path / "stored")


@pytest.mark.parametrize("buffer", representatives([7, 8, 39, 40, 64], [7]))
def test_streamed_rows_are_encoded_in_chunks(tmp_path: Path, buffer: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most one chunk is in memory; the store has every prompt, and training is the same (the buffer divides the 40
    rows, does not, equals them, or exceeds them)."""

    def config() -> RunConfig:
        made = encoding(tmp_path)
        made.data.streaming, made.data.buffer, made.data.overlong = True, buffer, Overlong.truncate
        made.data.workers = 2 if buffer == 8 else 0
        return made

    whole = DataModule.encoded
    with monkeypatch.context() as patch:
        patch.setattr(DataModule, "encoded", lambda self, s: pytest.fail("train") if s == "train" else whole(self, s))
        encode(config(), tmp_path / "kept")
    plain = encoding(tmp_path)
    encode(plain, tmp_path / "whole")
    stores = [RepsStore(tmp_path / name / "reps") for name in ("kept", "whole")]
    assert {*stores[0].keys()} == {*stores[1].keys()}
    assert len(stores[0]) == len(stores[1]) > 50
    stored = config()
    stored.data.reps = str(tmp_path / "kept" / "reps")
    train(config(), tmp_path / "live")
    train(stored, tmp_path / "stored")
    assert_same_losses(tmp_path / "live", tmp_path / "stored")


def test_an_existing_run_or_store_in_the_folder_is_not_changed(tmp_path: Path) -> None:
    train(encoding(tmp_path), tmp_path / "run")
    encode(encoding(tmp_path), tmp_path / "kept")
    before = [(tmp_path / name / "config.yaml").read_bytes() for name in ("run", "kept")]
    with pytest.raises(UserError, match="run: holds a run already; write the store to another folder"):
        encode(encoding(tmp_path, dtype="int8"), tmp_path / "run")
    with pytest.raises(UserError, match="kept_as is 'float32' in the store, 'int8' is required"):
        encode(encoding(tmp_path, dtype="int8"), tmp_path / "kept")
    assert [(tmp_path / name / "config.yaml").read_bytes() for name in ("run", "kept")] == before
    encode(encoding(tmp_path), tmp_path / "kept")  # resumed with the same settings


@pytest.mark.parametrize("tokenizers", [Tokenizers.shared, Tokenizers.llm_tokens])
def test_the_same_command_on_a_finished_store_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tokenizers: Tokenizers
) -> None:
    def config() -> RunConfig:
        made = encoding(tmp_path)
        made.model.tokenizers = tokenizers
        made.trainer.threads = None
        return made

    def contents() -> dict[str, tuple[bytes, int]]:
        paths = [path for path in (tmp_path / "kept").rglob("*") if path.is_file()]
        return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}

    encode(config(), tmp_path / "kept")
    before = contents()
    shown = capsys.readouterr().out
    assert "already had" not in shown
    monkeypatch.setattr("llm2slm.data.reps.writer.StoreWriter.append", lambda *_: pytest.fail("it was encoded again"))
    encode(config(), tmp_path / "kept")
    assert "; the store already had all prompts of 57 rows; train with data.reps=" in capsys.readouterr().out
    assert contents() == before


def test_disk_space_for_the_embeddings_is_checked_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = encoding(tmp_path)
    config.model.tokenizers = Tokenizers.llm_tokens
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 7}))
    monkeypatch.setattr("llm2slm.commands.encode.encode", lambda *_: pytest.fail("it was read"))
    with pytest.raises(UserError, match="7 bytes are free"):
        encode(config, tmp_path / "kept")


def test_the_number_of_threads_is_that_of_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    encode(encoding(tmp_path), tmp_path / "kept")
    assert asked == [1]


def test_mistakes_are_refused_and_a_store_with_more_rows_is_accepted(tmp_path: Path) -> None:
    config = encoding(tmp_path)
    config.model.llm.init = Init.random
    with pytest.raises(UserError, match=r"model\.llm has random weights"):
        encode(config, tmp_path / "never")
    config = encoding(tmp_path)
    config.model.kind = SystemKind.slm
    with pytest.raises(UserError, match=r"model\.kind=slm: use llm2slm"):
        encode(config, tmp_path / "never")
    config = encoding(tmp_path)
    config.data.reps = str(tmp_path / "nowhere")
    with pytest.raises(UserError, match="nowhere"):
        train(config, tmp_path / "never")
    encode(encoding(tmp_path), tmp_path / "kept")
    other = encoding(tmp_path)
    other.data.reps = str(tmp_path / "kept" / "reps")
    other.data.train, other.data.train_size = other.data.test, None
    other.data.validation = other.data.test
    train(other, tmp_path / "fewer")  # rows that the store contains


def test_a_split_is_refused(tmp_path: Path) -> None:
    config = encoding(tmp_path)
    config.split = "train"
    with pytest.raises(UserError, match=r"^split=train: encode stores all splits; leave it out"):
        encode(config, tmp_path / "never")
    assert not (tmp_path / "never").exists()
