"""`llm2slm encode`, and training from what it keeps: without the LLM's weights, and the same to the last bit."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import tiny_run

from llm2slm.commands.encode import run as encode
from llm2slm.commands.train import run as train
from llm2slm.config import RunConfig
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.types import StoreDtype, SystemKind, Tokenizers, UserError


def encoding(root: Path, llm: str = "t5", slm: str = "t5", mode: str = "add", dtype: str = "float32") -> RunConfig:
    config = tiny_run(root, llm=llm, slm=slm, mode=mode)
    config.encode.dtype = StoreDtype(dtype)
    config.trainer.threads = 1
    return config


@pytest.mark.parametrize(
    ("llm", "slm", "mode", "tokenizers"),
    [
        ("t5", "t5", "add", "shared"),
        ("gpt2", "gpt2", "prepend", "offsets"),
        ("t5", "gpt2", "cross_attention", "llm_tokens"),
    ],
)
def test_training_from_the_store_is_training_with_the_llm(
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
    shutil.move(weights, tmp_path / "gone")  # nobody can read them now
    found = train(stored, tmp_path / "stored")
    assert losses(tmp_path / "live") == losses(tmp_path / "stored")
    assert found.systems[0].quality == live.systems[0].quality
    answers = [(tmp_path / name / "predictions.jsonl").read_text() for name in ("live", "stored")]
    assert answers[0] == answers[1]
    shutil.move(tmp_path / "gone", weights)
    texts = ["the little dog sees", "two dogs"]
    models = [LLM2SLM.from_pretrained(tmp_path / name / "model") for name in ("live", "stored")]
    assert models[0].generate_text(texts, max_new_tokens=6) == models[1].generate_text(texts, max_new_tokens=6)


def losses(folder: Path) -> list[tuple[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [(row["train/loss"], row["val/loss"]) for row in csv.DictReader(file)]


@pytest.mark.parametrize(("dtype", "near"), [("bfloat16", 0.02), ("int8", 0.02)])
def test_narrower_stores_give_nearly_the_same_losses(tmp_path: Path, dtype: str, near: float) -> None:
    train(encoding(tmp_path), tmp_path / "live")
    encode(encoding(tmp_path, dtype=dtype), tmp_path / "kept")
    config = encoding(tmp_path)
    config.data.reps = str(tmp_path / "kept" / "reps")
    train(config, tmp_path / "stored")
    pairs = list(zip(losses(tmp_path / "live"), losses(tmp_path / "stored"), strict=True))
    assert any(a != b for a, b in pairs)  # else nothing was rounded
    for one, other in pairs:
        for a, b in zip(one, other, strict=True):
            assert (a == "") == (b == "") and (a == "" or float(a) == pytest.approx(float(b), rel=near))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: setattr(c.model.llm, "layer", 1), r"layers is \[2\] in the store, \[1\] is asked for"),
        (lambda c: setattr(c.model.llm, "dtype", "bfloat16"), r"dtype is 'float32' in the store, 'bfloat16'"),
        (lambda c: setattr(c.model.llm, "prefix", "the "), r"frame.before is '' in the store, 'the '"),
        (lambda c: setattr(c.data, "max_prompt_tokens", 60), r"max_prompt_tokens is 512 in the store, 60"),
    ],
)
def test_a_store_of_something_else_is_refused_before_training(tmp_path: Path, change: Any, said: str) -> None:
    encode(encoding(tmp_path), tmp_path / "kept")
    config = encoding(tmp_path)
    config.data.reps = str(tmp_path / "kept" / "reps")
    change(config)
    with pytest.raises(UserError, match=said):
        train(config, tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_mistakes(tmp_path: Path) -> None:
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
    train(other, tmp_path / "fewer")  # rows that are in it
