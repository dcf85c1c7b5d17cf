"""`trainer.int8_encoding`: the LLM encodes in int8 while training, and in its dtype before and after; refusals."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import build, tiny_run

from llm2slm.commands import int8_encoding, train
from llm2slm.decoding import int8_reading
from llm2slm.runs import curve
from llm2slm.training.distill import Teacher
from llm2slm.types import Control, UserError

needs_int8 = pytest.mark.skipif(not int8_reading.available(), reason="torch has no int8 products")


@needs_int8
def test_the_llm_encodes_in_int8_during_training_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_run(tmp_path)
    exact = train.run(deepcopy(config), tmp_path / "exact", shown=False)
    seen: dict[str, Any] = {}
    fit = train.fit

    def observed(config: Any, folder: Path, model: Any, *args: Any, **kwargs: Any) -> Any:
        batch = model.collator.batch_of_texts(["the old dog", "a cat"])
        seen["during"], seen["model"], seen["batch"] = model.represent(batch).reps_BPE, model, batch
        assert not any("forward" in vars(module) for module in model.slm.modules())
        return fit(config, folder, model, *args, **kwargs)

    monkeypatch.setattr(train, "fit", observed)
    config.trainer.int8_encoding = True
    result = train.run(config, tmp_path / "int8", shown=False)
    after = seen["model"].represent(seen["batch"]).reps_BPE
    difference = (seen["during"] - after).abs().max() / after.abs().max()
    assert 1e-4 < difference < 0.1  # of 8 bits, over two layers
    assert not any("forward" in vars(module) for module in seen["model"].encoder.modules())
    curves = [curve(tmp_path / name / "metrics.csv") for name in ("exact", "int8")]
    losses = [[row["train/loss"] for row in each.values() if "train/loss" in row] for each in curves]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert result.systems[0].parameters == exact.systems[0].parameters


@needs_int8
def test_a_resumed_training_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    config = tiny_run(tmp_path, max_steps=6, val_every=3, int8_encoding=True)
    config.optim.schedule = "constant"
    train.run(deepcopy(config), tmp_path / "whole", shown=False)
    config.trainer.max_steps = 3
    train.run(deepcopy(config), tmp_path / "parts", shown=False)
    config.run, config.trainer.max_steps = str(tmp_path / "parts"), 6
    train.run(config, tmp_path / "parts", shown=False)
    rows = [curve(tmp_path / name / "metrics.csv") for name in ("whole", "parts")]
    for key in ("train/loss", "val/loss"):
        assert rows[1][5][key] == rows[0][5][key]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("reps", r"trainer\.int8_encoding=true: data\.reps=STORE has the representations already; leave one"),
        ("control", r"trainer\.int8_encoding=true: with model\.control=zero no prompt is encoded; leave it out"),
        (
            "quantized",
            r"trainer\.int8_encoding=true: model\.llm\.quantization quantizes the LLM's weights already; leave",
        ),
        ("layers", r"trainer\.int8_encoding=true: the LLM has no linear layer of plain weights"),
        ("engine", r"trainer\.int8_encoding=true: this build of torch has no int8 products; leave it"),
    ],
)
def test_incompatible_settings_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, message: str
) -> None:
    config = tiny_run(tmp_path, int8_encoding=True)
    if change == "reps":
        config.data.reps = "STORE"
    elif change == "control":
        config.model.control = Control.zero
    elif change == "quantized":
        config.model.llm.quantization = {"quant_method": "quanto", "weights": "int8"}
    elif change == "layers":
        monkeypatch.setattr(int8_reading, "plain", lambda _: False)
    else:
        monkeypatch.setattr(int8_reading, "ENGINES", ())
    with pytest.raises(UserError, match=message):
        train.run(config, tmp_path / "run", shown=False)
    assert not (tmp_path / "run").exists()


def test_on_a_gpu_one_line_states_that_it_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_run(tmp_path, int8_encoding=True)
    model = build(config)[0]
    monkeypatch.setattr(int8_encoding, "device_type", lambda _: "cuda")
    with int8_encoding.int8_encoding(model, config):
        assert not any("forward" in vars(module) for module in model.encoder.modules())
    assert capsys.readouterr().err.endswith(
        "llm2slm: trainer.int8_encoding=true: products of int8 run on a CPU only; on cuda the LLM encodes in "
        "model.llm.dtype=float32\n"
    )


@needs_int8
@pytest.mark.parametrize("llm", ["gpt2", "t5"])
def test_a_teacher_that_shares_the_weights_stays_in_its_dtype(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, llm: str
) -> None:
    config = tiny_run(tmp_path, llm=llm, slm=llm, mode="add", max_steps=2, val_every=2)
    config.optim.distill = 0.5
    logits, given = Teacher.logits, list[torch.Tensor]()

    def observed(self: Teacher, batch: Any) -> torch.Tensor:
        given.append(logits(self, batch))
        return given[-1]

    monkeypatch.setattr(Teacher, "logits", observed)
    for int8 in (False, True):
        config.trainer.int8_encoding = int8
        train.run(deepcopy(config), tmp_path / str(int8), shown=False)
    assert len(given) >= 4
    assert torch.equal(given[0], given[len(given) // 2])
