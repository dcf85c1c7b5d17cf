"""Controls (ablated hybrids) against the plain hybrid, with the ablated representations constructed by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sampling import representatives
from torch import Tensor
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments

from llm2slm.models.build import build_model
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.models.hybrid_config import LLM2SLMConfig
from llm2slm.testing import labelled, tiny_model_config, tiny_rows
from llm2slm.types import IGNORE_INDEX, Batch, Control, Reps, SystemKind, Tokenizers, UserError

SYSTEMS = [
    ("t5", "add", "shared"), ("t5", "replace", "offsets"), ("t5", "prepend", "offsets"), ("t5", "memory", "shared"),
    ("gpt2", "add", "shared"), ("gpt2", "add", "offsets"), ("gpt2", "replace", "shared"),
    ("gpt2", "add", "llm_tokens"), ("gpt2", "prepend", "shared"), ("gpt2", "memory", "offsets"),
    ("gpt2", "cross_attention", "shared"), ("gpt2", "cross_attention", "offsets"),
]  # fmt: skip
SOME = representatives(
    SYSTEMS, [("t5", "add", "shared"), ("gpt2", "prepend", "shared"), ("gpt2", "cross_attention", "offsets")]
)
IN_PLACE = ("add", "replace")
EIGHT = {"max_new_tokens": 8, "min_new_tokens": 8}
Make = Callable[..., LLM2SLM]


@pytest.fixture
def make(zoo: Path) -> Make:
    """A seeded model: the same weights for every control, with a large z and open gates."""

    def made(control: str, slm: str = "t5", mode: str = "add", tokenizers: str = "shared", **more: Any) -> LLM2SLM:
        cfg = tiny_model_config(zoo, "t5", slm, mode, Tokenizers(tokenizers), **more)
        cfg.control = Control(control)
        torch.manual_seed(7)
        model = build_model(cfg).eval()
        if model.projector is not None:
            model.projector.layers[-1].weight.data.mul_(4)
        for layer in model.crossing.layers if model.crossing is not None else []:
            layer.gate.data.fill_(1.0)
        return model

    return made


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def with_prompt_of(model: LLM2SLM, own: int, other: int) -> Batch:
    """Row `own` alone, with the LLM's prompt of row `other`; aligned by hand where z is mixed into the SLM's prompt."""
    batch, source = labelled(model, [own]), labelled(model, [other])
    align = None
    if model.conditioning in IN_PLACE:
        p, p_other = batch.llm_ids_BP.shape[1], source.llm_ids_BP.shape[1]
        by_own = torch.eye(p) if batch.align_BQP is None else batch.align_BQP[0]
        align = torch.zeros(1, len(by_own), p_other)
        for n in range(min(p, p_other)):
            align[0, :, n] = by_own[:, n]
    return replace(batch, llm_ids_BP=source.llm_ids_BP, llm_mask_BP=source.llm_mask_BP, align_BQP=align)


def of_row(logits_BTV: Tensor, batch: Batch, row: int) -> Tensor:
    return logits_BTV[row, batch.labels_BT[row] != IGNORE_INDEX]


# shuffled


@torch.no_grad()
@pytest.mark.parametrize(("slm", "mode", "tokenizers"), SOME)
def test_shuffled_equals_the_hybrid_with_the_previous_rows_prompt(
    make: Make, slm: str, mode: str, tokenizers: str
) -> None:
    model, plain = make("shuffled", slm, mode, tokenizers), make("none", slm, mode, tokenizers)
    batch = labelled(model, [0, 1, 2])
    assert len(set(batch.llm_mask_BP.sum(1).tolist())) == 3  # longer than the prompt of the row, and shorter
    logits, own = model.logits(batch), plain.logits(batch)
    answers, beams = model.generate(batch, **EIGHT), model.generate(batch, num_beams=3, **EIGHT)
    for row, other in enumerate([2, 0, 1]):
        given = with_prompt_of(plain, row, other)
        close(of_row(logits, batch, row), plain.logits(given)[0])
        assert not torch.allclose(of_row(logits, batch, row), of_row(own, batch, row), atol=1e-2)
        assert torch.equal(answers[row], plain.generate(given, **EIGHT)[0])
        assert torch.equal(beams[row], plain.generate(given, num_beams=3, **EIGHT)[0])
    assert not torch.equal(answers, plain.generate(batch, **EIGHT))


@torch.no_grad()
def test_shuffled_never_gives_a_row_its_prompt(make: Make) -> None:
    model, plain = make("shuffled"), make("none")
    batch = labelled(model, [0, 1, 1, 2])
    logits = model.logits(batch)
    for row, (own, other) in enumerate([(0, 2), (1, 0), (1, 0), (2, 1)]):
        close(of_row(logits, batch, row), plain.logits(with_prompt_of(plain, own, other))[0])


@torch.no_grad()
@pytest.mark.parametrize(("slm", "mode", "tokenizers"), SOME)
def test_a_batch_of_one_gets_the_last_other_prompt(make: Make, slm: str, mode: str, tokenizers: str) -> None:
    model, plain = make("shuffled", slm, mode, tokenizers), make("none", slm, mode, tokenizers)
    zero = make("zero", slm, mode, tokenizers)
    for rows, other in [
        ([0], None), ([0], None), ([1], 0), ([1], 0), ([1], 0), ([0], 1), ([0, 0], 1), ([2], 0), ([0, 1, 2], -1),
        ([2], 1), ([1, 1, 2], -1), ([1], 2), ([2], 1),
    ]:  # fmt: skip
        batch = labelled(model, rows)
        logits = model.logits(batch)
        if other == -1:  # several prompts: rows get those of each other
            continue
        given = labelled(zero, rows[:1]) if other is None else with_prompt_of(plain, rows[0], other)
        expected = (zero if other is None else plain).logits(given)[0]
        for row in range(len(rows)):
            close(of_row(logits, batch, row), expected)


@pytest.mark.parametrize("mode", ["add", "memory"])
def test_prompts_stored_in_inference_mode_can_be_trained_on(make: Make, mode: str) -> None:
    model = make("shuffled", mode=mode, norm=False).train()  # the first layer saves its input for its gradient
    with torch.inference_mode():
        model.generate(labelled(model, [0]), **EIGHT)
    model.logits(labelled(model, [1])).square().mean().backward()
    assert model.projector.layers[-1].weight.grad.abs().max() > 0


def test_stored_prompts_are_not_in_the_state_dict_and_not_saved(make: Make, tmp_path: Path) -> None:
    model = make("shuffled")
    before = set(model.state_dict())
    with torch.no_grad():
        model.logits(labelled(model, [0]))
        assert set(model.state_dict()) == before
        model.save_pretrained(tmp_path / "saved")
        loaded, zero = LLM2SLM.from_pretrained(tmp_path / "saved"), make("zero")
        close(loaded.logits(labelled(loaded, [1])), zero.logits(labelled(zero, [1])))


# constant


@torch.no_grad()
@pytest.mark.parametrize("control", ["constant", "zero"])
@pytest.mark.parametrize(("slm", "mode", "tokenizers"), SOME)
def test_the_llms_prompt_has_no_effect_and_is_not_read(
    make: Make, control: str, slm: str, mode: str, tokenizers: str
) -> None:
    model = make(control, slm, mode, tokenizers)
    model.represent = lambda batch: pytest.fail("the LLM was run")
    batch = labelled(model, [0, 1, 2])
    other = replace(batch, llm_ids_BP=(batch.llm_ids_BP.flip(1) + 1) % 250)
    assert torch.equal(model.logits(batch), model.logits(other))
    assert torch.equal(model.generate(batch, **EIGHT), model.generate(other, **EIGHT))
    if tokenizers != "llm_tokens":  # otherwise the SLM gets the LLM's embeddings
        plain = make("none", slm, mode, tokenizers)
        assert not torch.allclose(plain.logits(batch), plain.logits(other), atol=1e-2)


@torch.no_grad()
@pytest.mark.parametrize("slm", ["t5", "gpt2"])
def test_constant_memory_is_the_same_for_all_prompts(make: Make, slm: str) -> None:
    model = make("constant", slm, "memory", norm=False)
    ids_BP = torch.arange(5, 15).reshape(2, 5)
    labels_BT = torch.tensor([[4, 9, 1]]).expand(2, 3)
    batch = Batch(ids_BP, torch.ones_like(ids_BP), ids_BP, torch.ones_like(ids_BP), None, labels_BT)
    one, other = model.logits(batch)
    assert torch.equal(one, other)
    states = model.prefill(batch).states_BQD
    assert torch.equal(states, states[:1, :1].expand_as(states)) and states.abs().max() > 0
    expected = model.projector(torch.ones(24))
    close(states[0, 0], expected)
    answers = model.generate(batch, **EIGHT)
    assert torch.equal(answers[0], answers[1])


# zero


@torch.no_grad()
@pytest.mark.parametrize(("slm", "tokenizers"), [("t5", "shared"), ("gpt2", "shared"), ("gpt2", "offsets")])
def test_zero_with_add_equals_the_slm_alone(make: Make, slm: str, tokenizers: str) -> None:
    model, alone = make("zero", slm, "add", tokenizers), make("none", slm, "none", tokenizers, kind=SystemKind.slm)
    batch, own = labelled(model, [0, 1, 2]), labelled(alone, [0, 1, 2])
    for parameter in model.projector.parameters():
        parameter.fill_(torch.nan)  # the output of the projector must have no effect
    assert torch.equal(model.logits(batch), alone.logits(own))
    assert torch.equal(model.generate(batch, **EIGHT), alone.generate(own, **EIGHT))


@torch.no_grad()
@pytest.mark.parametrize("mode", ["prepend", "memory", "cross_attention"])
def test_zero_sets_z_to_zero_at_the_positions_of_the_hybrid(make: Make, mode: str) -> None:
    model, plain = (make(control, "gpt2", mode) for control in ("zero", "none"))
    batch = labelled(model, [0, 1, 2])
    found, expected = model.prefill(batch), plain.prefill(batch)
    assert torch.equal(found.mask_BQ, expected.mask_BQ)
    if mode == "prepend":
        real = found.mask_BQ.bool()
        changed = (found.states_BQD != expected.states_BQD).any(-1) & real
        assert changed.sum() == batch.llm_mask_BP.sum() and (found.states_BQD[changed] == 0).all()
    elif mode == "memory":
        assert (found.states_BQD == 0).all()
    else:
        assert all((tensor == 0).all() for pair in found.gated_states.keys_values for tensor in pair)
        assert torch.equal(found.gated_states.mask_BP, expected.gated_states.mask_BP)
        assert torch.equal(found.states_BQD, expected.states_BQD)


# All controls


@pytest.mark.parametrize("control", ["constant", "shuffled", "zero"])
@pytest.mark.parametrize(("slm", "mode", "tokenizers"), SOME)
def test_every_parameter_has_a_gradient(make: Make, control: str, slm: str, mode: str, tokenizers: str) -> None:
    """DDP requires the gradient of every parameter."""
    model, plain = (make(name, slm, mode, tokenizers) for name in (control, "none"))
    for each in (model, plain):
        each.train().logits(labelled(each, [0, 1, 2])).square().mean().backward()
    without = {name for name, p in plain.named_parameters() if p.requires_grad and p.grad is None}
    assert {name for name, p in model.named_parameters() if p.requires_grad and p.grad is None} == without
    largest = max(float(p.grad.abs().max()) for p in model.projector.layers.parameters())
    assert (largest == 0) == (control == "zero")
    assert all(p.grad is None for p in model.encoder.parameters())


@torch.no_grad()
@pytest.mark.parametrize("control", ["constant", "shuffled", "zero"])
@pytest.mark.parametrize(("slm", "mode"), [("t5", "memory"), ("gpt2", "add")])
def test_given_representations_are_ablated_too(make: Make, control: str, slm: str, mode: str) -> None:
    model = make(control, slm, mode, "offsets")
    batch = labelled(model, [0, 1, 2])
    reps = model.represent(batch)
    without = replace(batch, llm_ids_BP=None, llm_mask_BP=None)  # prompts are then identified by the SLM's tokens
    for given in (batch, without):
        assert torch.equal(model.prefill(given, reps).states_BQD, model.prefill(batch).states_BQD)
        assert torch.equal(model.generate(given, reps=reps, **EIGHT), model.generate(batch, **EIGHT))


@torch.no_grad()
def test_a_batch_without_an_llms_prompt_is_refused(make: Make) -> None:
    model = make("zero")
    with pytest.raises(ValueError, match="this batch has no LLM prompts"):
        model.logits(replace(labelled(model, [0]), llm_ids_BP=None, llm_mask_BP=None))


@torch.no_grad()
@pytest.mark.parametrize("control", ["constant", "shuffled", "zero"])
def test_a_control_is_unchanged_after_saving_and_loading(make: Make, control: str, tmp_path: Path) -> None:
    model = make(control, "gpt2", "add", "offsets")
    assert model.label == f"llm2slm, {control}"
    batch = labelled(model, [0, 1, 2])
    model.save_pretrained(tmp_path / "saved")
    loaded = LLM2SLM.from_pretrained(tmp_path / "saved")
    assert (loaded.control, loaded.config.control, loaded.label) == (Control(control), control, model.label)
    assert torch.equal(loaded.logits(batch), model.logits(batch))
    written = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert written.pop("control") == control
    (tmp_path / "saved" / "config.json").write_text(json.dumps(written))  # the format of a version without controls
    older, plain = LLM2SLM.from_pretrained(tmp_path / "saved"), make("none", "gpt2", "add", "offsets")
    assert (older.control, older.label) == (Control.none, "llm2slm")
    assert torch.equal(older.logits(batch), plain.logits(batch))
    assert LLM2SLMConfig().control == "none"


@pytest.mark.parametrize("kind", ["slm", "llm"])
def test_a_control_needs_an_llm_encoder(make: Make, kind: str) -> None:
    with pytest.raises(UserError, match=rf"^model\.control=zero: .* model\.kind={kind} .*use model\.control=none$"):
        make("zero", kind=SystemKind(kind))


@pytest.mark.parametrize("control", representatives(["constant", "shuffled", "zero"], ["shuffled"]))
def test_transformers_trainer_trains_a_control(make: Make, control: str, tmp_path: Path) -> None:
    model, again = make(control), make(control)
    inputs = model.processor([row["source"] for row in tiny_rows()], [row["target"] for row in tiny_rows()])
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, again.logits(labelled(again, [0, 1, 2])))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    settings = Seq2SeqTrainingArguments(
        output_dir=str(tmp_path), learning_rate=1e-2, per_device_train_batch_size=1, remove_unused_columns=False,
        report_to="none", use_cpu=True, disable_tqdm=True, max_steps=3, save_strategy="no",
    )  # fmt: skip
    Seq2SeqTrainer(
        model, settings, lambda rows: model.processor([r["source"] for r in rows], [r["target"] for r in rows]),
        tiny_rows(), processing_class=model.processor,
    ).train()  # fmt: skip
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert "slm.shared.weight" in moved and not any(name.startswith("encoder.") for name in moved)
    assert ("projector.layers.3.bias" in moved) == (control != "zero")


@torch.no_grad()
def test_controls_of_several_layers(zoo: Path) -> None:
    cfg = tiny_model_config(zoo)
    cfg.llm.layer, cfg.control = [1, 2], Control.constant
    model = build_model(cfg).eval()
    batch = labelled(model, [0, 1])
    assert torch.equal(model.logits(batch), model.logits(batch, Reps(torch.randn(2, batch.llm_ids_BP.shape[1], 48),
                                                                      batch.llm_mask_BP)))  # fmt: skip
