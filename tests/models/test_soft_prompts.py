"""Prompt and prefix tuning against peft models with the same weights; trained, saved and loaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sampling import first_of_each, representatives
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoProcessor, PreTrainedModel

from llm2slm.config import DataConfig
from llm2slm.models.build import build_model
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.models.loading.configs import read_config
from llm2slm.models.slm import start_token
from llm2slm.testing import labelled, tiny_model_config, tiny_rows
from llm2slm.types import IGNORE_INDEX, Batch, Init, SystemKind, Tokenizers, UserError

peft = pytest.importorskip("peft")

SLMS = ("t5", "flan", "bart", "pegasus", "t5gemma", "gpt2", "pythia", "llama", "qwen2", "gemma2", "opt")
TUNES = ("prompt", "prefix")
TEXTS = [row["source"] for row in tiny_rows()]
SIX = {"max_new_tokens": 6, "min_new_tokens": 6}
VIRTUAL = 5


def system(
    zoo: Path, slm: str, tune: str, kind: str = "slm", mode: str = "add", llm: str = "t5", **values: Any
) -> LLM2SLM:
    torch.manual_seed(3)
    mixed = Tokenizers.shared if {llm, slm} <= {"t5", "gpt2"} else Tokenizers.offsets
    cfg = tiny_model_config(zoo, llm, slm, mode, mixed, kind=SystemKind(kind))
    peft = {"num_virtual_tokens": VIRTUAL} | values
    model = build_model(replace(cfg, slm=replace(cfg.slm, tune=tune, peft=peft))).eval()
    if tune == "prefix":  # large, so that its position has an effect
        for parameter in model.slm.virtual_tokens.parameters():
            parameter.data.mul_(1.5)
    return model


def plain(zoo: Path, slm: str) -> PreTrainedModel:
    """The SLM of such a system, loaded by transformers."""
    cut = "llm" if slm in ("t5", "gpt2") else "slm"
    place = zoo / f"slm_{slm}_{cut}"
    config = read_config(str(place))
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    return auto.from_pretrained(place, config=config).eval()


def by_peft(zoo: Path, slm: str, model: LLM2SLM) -> Any:
    """A peft model of the same SLM with the same virtual tokens."""
    base, tokens = plain(zoo, slm), model.slm.virtual_tokens
    task = "SEQ_2_SEQ_LM" if base.config.is_encoder_decoder else "CAUSAL_LM"
    if tokens.tune == "prompt":
        wrapped = peft.get_peft_model(base, peft.PromptTuningConfig(task_type=task, num_virtual_tokens=VIRTUAL))
        own = wrapped.prompt_encoder["default"].embedding.weight.data
        own[:VIRTUAL] = tokens.part.embedding.weight.data  # for two halves peft has twice as many, and uses the first
        return wrapped.eval()
    layers, heads = tokens.shape
    width = tokens.part.embedding.weight.shape[1] // (2 * layers)
    config = peft.PrefixTuningConfig(
        task_type=task, num_virtual_tokens=VIRTUAL, num_layers=layers, num_attention_heads=heads, token_dim=width
    )
    wrapped = peft.get_peft_model(base, config)
    ours = tokens.part.embedding.weight.data.view(VIRTUAL, layers, 2, -1)
    theirs = wrapped.prompt_encoder["default"].embedding.weight.data.view(VIRTUAL, 2 * layers, -1)
    # of the doubled prefix of an encoder-decoder peft uses each second pair: with three layers the pairs 0, 2, 1
    step = 4 if base.config.is_encoder_decoder else 2
    for layer in range(layers):
        for which in range(2):
            theirs[:, (step * layer + which) % (2 * layers)] = ours[:, layer, which]
    return wrapped.eval()


def own_rows(batch: Batch) -> list[tuple[Tensor, Tensor]]:
    """Prompt and response of each row, without padding."""
    rows = zip(batch.slm_ids_BQ, batch.slm_mask_BQ, batch.labels_BT, strict=True)
    return [(ids[mask.bool()][None], labels[labels != IGNORE_INDEX][None]) for ids, mask, labels in rows]


def logits(model: LLM2SLM, batch: Batch) -> Tensor:
    with torch.no_grad():
        return model.logits(batch)


@torch.no_grad()
@pytest.mark.parametrize("tune", TUNES)
@pytest.mark.parametrize("slm", representatives(["t5", "gpt2", "llama"], ["t5", "gpt2"]))
def test_logits_and_answers_equal_those_of_peft(zoo: Path, slm: str, tune: str) -> None:
    model = system(zoo, slm, tune)
    reference = by_peft(zoo, slm, model)
    batch = labelled(model, [0, 1, 2])
    ours = logits(model, batch)
    untuned = plain(zoo, slm)
    eos, pad = model.collator.slm_tokenizer.eos_token_id, model.collator.pad_id
    length = SIX | {"do_sample": False, "pad_token_id": pad, "eos_token_id": eos}
    answers = {beams: model.generate(batch, num_beams=beams, **SIX) for beams in (1, 3)}
    assert len({len(ids[0]) for ids, _ in own_rows(batch)}) == 3
    for row, (ids, labels) in enumerate(own_rows(batch)):
        read, mask = ids.shape[1], torch.ones_like(ids)
        if model.slm.config.is_encoder_decoder:
            inputs = {"input_ids": ids, "attention_mask": mask, "labels": labels}
            theirs, without = reference(**inputs).logits[0], untuned(**inputs).logits[0]
        else:
            whole = torch.cat([ids, labels], dim=1)
            theirs = reference(input_ids=whole, attention_mask=torch.ones_like(whole)).logits[0, :-1]
            theirs, without = theirs[-labels.shape[1] :], untuned(whole).logits[0, read - 1 : -1]
        torch.testing.assert_close(ours[row, : labels.shape[1]], theirs, rtol=1e-4, atol=1e-4)
        assert (theirs - without).abs().max() > 0.05  # the virtual tokens have an effect
        for beams, found in answers.items():
            generated = reference.generate(input_ids=ids, attention_mask=mask, num_beams=beams, **length)[0]
            assert found[row].tolist() == generated[-6:].tolist(), (row, beams)


def assert_independent_of_padding_and_cache(model: LLM2SLM, batch: Batch, tolerance: float) -> tuple[Tensor, Tensor]:
    """Logits in a padded batch equal those of each row alone; logits of cached generation equal teacher-forced ones.

    Returns:
        The logits_BTV of the batch, and the generated ids_BT.
    """
    together = logits(model, batch)
    for row, (_, labels) in enumerate(own_rows(batch)):
        alone = logits(model, labelled(model, [row]))[0]
        torch.testing.assert_close(together[row, : labels.shape[1]], alone, rtol=tolerance, atol=tolerance)
    generated = model.generate(batch, return_dict_in_generate=True, output_logits=True, **SIX)
    again = logits(model, replace(batch, labels_BT=generated.sequences))
    torch.testing.assert_close(again, torch.stack(generated.logits, 1), rtol=1e-3, atol=1e-3)
    return together, generated.sequences


@pytest.mark.parametrize(
    ("slm", "tune"),
    representatives(
        [(s, t) for s in SLMS for t in TUNES],
        [("t5", "prompt"), ("bart", "prefix"), ("gpt2", "prefix"), ("llama", "prompt")],
    ),
)
def test_padding_and_cache_have_no_effect_in_every_family(zoo: Path, slm: str, tune: str) -> None:
    model = system(zoo, slm, tune)
    batch = labelled(model, [0, 1, 2])
    assert_independent_of_padding_and_cache(model, batch, 1e-4)
    one_by_one = [model.generate(model.collator.batch_of_texts([text]), num_beams=3, **SIX)[0] for text in TEXTS]
    assert torch.equal(model.generate(batch, num_beams=3, **SIX), torch.stack(one_by_one))
    assert model.generate(batch, do_sample=True, num_return_sequences=2, **SIX).shape == (6, 6)


GUIDED = [
    (slm, mode, tune)
    for slm in ("t5", "gpt2")
    for mode in ("add", "replace", "prepend", "memory", "cross_attention")
    for tune in TUNES
    if (mode, tune) != ("memory", "prompt") and (slm, mode) != ("t5", "cross_attention")
]
CELLS = [("slm", slm, "add", tune) for slm in SLMS for tune in TUNES] + [("llm2slm", *cell) for cell in GUIDED]


@pytest.mark.parametrize(
    ("kind", "slm", "mode", "tune"), first_of_each(CELLS, lambda cell: (cell[0], cell[2] == "add", cell[3]))
)
def test_only_virtual_tokens_are_trained_saved_and_loaded(
    zoo: Path, tmp_path: Path, kind: str, slm: str, mode: str, tune: str
) -> None:
    model = system(zoo, slm, tune, kind, mode)
    if model.projector is not None:
        model.projector.layers[-1].weight.data.mul_(4)
    parts = {"slm.virtual_tokens"} | ({"projector"} if kind == "llm2slm" else set())
    own = {name for name in model.trainable_names() if not any(new in name for new in ("crossing", "cross"))}
    assert own and all(name.startswith(tuple(parts)) for name in own)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    batch = labelled(model, [0, 1, 2])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    losses = []
    for _ in range(8):
        loss = cross_entropy(model.logits(batch).transpose(1, 2), batch.labels_BT, ignore_index=IGNORE_INDEX)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 0.02
    assert {n for n, p in model.named_parameters() if not torch.equal(p, before[n])} <= model.trainable_names()
    assert not [n for n in own if "virtual_tokens" in n and torch.equal(model.get_parameter(n), before[n])]

    together, generated = assert_independent_of_padding_and_cache(model, batch, 1e-3)

    model.save_pretrained(tmp_path)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert isinstance(loaded, LLM2SLM)
    assert loaded.kind == kind and loaded.parameter_counts()["total"] == model.parameter_counts()["total"]
    assert loaded.trainable_names() == model.trainable_names()
    assert torch.equal(logits(loaded, batch), together)
    assert torch.equal(loaded.generate(**AutoProcessor.from_pretrained(tmp_path)(TEXTS), **SIX), generated)
    beams = SIX | {"num_beams": 2}
    assert loaded.generate_text(TEXTS, **beams) == model.generate_text(TEXTS, **beams)


@torch.no_grad()
@pytest.mark.parametrize("slm", representatives(SLMS, ["t5", "bart", "gpt2", "llama"]))
def test_a_virtual_token_with_the_embedding_of_a_word_acts_as_that_word(zoo: Path, slm: str) -> None:
    """Against transformers with ids; some models scale the embeddings of ids."""
    model, untuned = system(zoo, slm, "prompt"), plain(zoo, slm)
    words, tokens = untuned.get_input_embeddings()(torch.arange(280)), model.slm.virtual_tokens.part.embedding.weight
    front = torch.stack([(words == token).all(1).nonzero()[0, 0] for token in tokens])[None]
    batch = labelled(model, [0, 1, 2])
    ours = logits(model, batch)
    for row, (ids, labels) in enumerate(own_rows(batch)):
        read = torch.cat([front, ids], dim=1)
        if untuned.config.is_encoder_decoder:
            given = torch.cat([torch.tensor([[start_token(model.slm)]]), labels[:, :-1]], dim=1)
            theirs = untuned(input_ids=read, decoder_input_ids=given).logits[0]
        else:
            theirs = untuned(torch.cat([read, labels], dim=1)).logits[0, read.shape[1] - 1 : -1]
        torch.testing.assert_close(ours[row, : labels.shape[1]], theirs, rtol=1e-4, atol=1e-4)


def test_virtual_tokens_of_a_frozen_model_start_from_its_embeddings(zoo: Path) -> None:
    model = system(zoo, "gpt2", "prompt")
    words = model.slm.get_input_embeddings().weight
    assert all((words == token).all(1).any() for token in model.slm.virtual_tokens.part.embedding.weight)
    drawn = system(zoo, "gpt2", "prompt", prompt_tuning_init="RANDOM").slm.virtual_tokens.part.embedding.weight
    assert not any((words == token).all(1).any() for token in drawn)
    text = {"prompt_tuning_init": "TEXT", "prompt_tuning_init_text": "two dogs"}
    generated = system(zoo, "gpt2", "prompt", tokenizer_name_or_path=str(zoo / "slm_gpt2_llm"), **text)
    ids = generated.collator.slm_tokenizer("two dogs")["input_ids"]
    expected = words[torch.tensor((ids * VIRTUAL)[:VIRTUAL])]
    assert torch.equal(generated.slm.virtual_tokens.part.embedding.weight, expected)


def test_the_default_is_twenty_virtual_tokens(zoo: Path) -> None:
    for tune in TUNES:
        cfg = tiny_model_config(zoo, "t5", "t5", kind=SystemKind.slm)
        model = build_model(replace(cfg, slm=replace(cfg.slm, tune=tune)))
        size = 20 * 16 if tune == "prompt" else 20 * 2 * 3 * 16  # keys and values of three layers of the decoder
        assert model.parameter_counts()["trainable"] == size


def test_a_projected_prefix_with_heads_of_another_total_width(zoo: Path, tmp_path: Path) -> None:
    """As in T5-v1.1, whose heads together are narrower or wider than d_model."""
    cfg = tiny_model_config(zoo, "t5", "t5", kind=SystemKind.slm)
    slm = replace(cfg.slm, init=Init.random, config={"num_heads": 3}, tune="prefix")
    torch.manual_seed(1)
    model = build_model(replace(cfg, slm=replace(slm, peft={"num_virtual_tokens": 2, "prefix_projection": True})))
    model.eval()
    batch = labelled(model, [0, 1, 2])
    assert model.slm.virtual_tokens.part.embedding.weight.shape == (2, 24)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(LLM2SLM.from_pretrained(tmp_path), batch), logits(model, batch))


def test_virtual_tokens_occupy_positions(zoo: Path) -> None:
    """A prompt must be shorter by their number, and an answer beyond the last position is refused."""
    for slm, tune, limit in (("gpt2", "prompt", 336), ("gpt2", "prefix", 336), ("bart", "prompt", 448)):  # of 512
        cfg = tiny_model_config(zoo, "t5", slm, tokenizers=Tokenizers.offsets, kind=SystemKind.slm)
        tuned = replace(cfg, slm=replace(cfg.slm, tune=tune, peft={"num_virtual_tokens": 64}))
        model = build_model(tuned, DataConfig(max_prompt_tokens=512, max_response_tokens=112))
        assert model.collator.max_prompt_tokens == limit
        if slm == "gpt2":
            fit = 512 - 64 - len(model.collator.slm_tokenizer("two dogs")["input_ids"])
            with pytest.raises(UserError, match=f"at most {fit} fit"):
                model.generate_text(["two dogs"], max_new_tokens=fit + 1)
    with pytest.raises(UserError, match=r"512 positions for a response \(64 are taken by virtual tokens\)"):
        cfg = tiny_model_config(zoo, "t5", "bart", tokenizers=Tokenizers.offsets, kind=SystemKind.slm)
        tuned = replace(cfg, slm=replace(cfg.slm, tune="prefix", peft={"num_virtual_tokens": 64}))
        build_model(tuned, DataConfig(max_response_tokens=500))


@pytest.mark.parametrize(
    ("tune", "values", "message"),
    [
        ("prompt", {"tokens": 3}, "model.slm.peft: .*tokens"),
        ("prefix", {"num_virtual_tokens": 0}, "num_virtual_tokens=0: give a whole number, 1 or more"),
        ("prefix", {"num_layers": 2}, "model.slm.peft.num_layers: the model determines it; leave it out"),
        ("prompt", {"prompt_tuning_init": "TEXT"}, "model.slm.peft: .*tokenizer_name_or_path"),
    ],
)
def test_invalid_arguments_are_refused(zoo: Path, tune: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        system(zoo, "gpt2", tune, **values)


def test_a_model_with_virtual_tokens_is_refused_as_a_part_of_another(zoo: Path, tmp_path: Path) -> None:
    system(zoo, "gpt2", "prefix").save_pretrained(tmp_path)
    cfg = tiny_model_config(zoo, "t5", "gpt2")
    for side in ("llm", "slm"):
        named = replace(getattr(cfg, side), name=str(tmp_path))
        with pytest.raises(UserError, match=f"has virtual tokens, and cannot be model.{side} of another"):
            build_model(replace(cfg, **{side: named}))


def test_virtual_tokens_without_a_prompt_are_refused(zoo: Path) -> None:
    with pytest.raises(UserError, match=r"conditioning=memory it processes none; use model.slm.tune=prefix"):
        system(zoo, "t5", "prompt", "llm2slm", "memory")


@pytest.mark.parametrize("arguments", [{"use_cache": False}, {"cache_implementation": "static"}], ids=str)
def test_a_prefix_refuses_another_cache(zoo: Path, arguments: dict[str, Any]) -> None:
    batch = labelled(system(zoo, "gpt2", "prefix"), [0])
    with pytest.raises(UserError, match="this model's trained prefix is in a cache that is given"):
        system(zoo, "gpt2", "prefix").generate(batch, **arguments, **SIX)
