"""The class as a `PreTrainedModel`: arguments of loading and forward, embeddings, checkpointing, attention."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from interface import ALONE, HYBRIDS, SYSTEMS, TEXTS, System, batch_of, built, close, named
from sampling import representatives
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

from llm2slm.models.build import build_model
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.models.slm import _contiguous
from llm2slm.testing import tiny_model_config, tiny_tokenizer
from llm2slm.types import IGNORE_INDEX, SystemKind, UserError

EIGHT = {"max_new_tokens": 8, "min_new_tokens": 8}
WHOLE = {"output_attentions": True, "output_hidden_states": True}
FEW = [HYBRIDS[0], HYBRIDS[2], HYBRIDS[6], HYBRIDS[8], SYSTEMS[-1]]


# forward


class Inputs:
    """The keywords of the SLM's last call, copied before the SLM changes a cache in them."""

    def __init__(self, model: LLM2SLM) -> None:
        self.keywords: dict[str, Any] = {}
        model.slm.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, _: nn.Module, __: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        self.keywords = copy.deepcopy(keywords)


@pytest.mark.parametrize("system", representatives(SYSTEMS, FEW), ids=named)
@torch.no_grad()
def test_states_and_attentions_equal_those_of_the_slm(zoo: Path, system: System) -> None:
    model = built(zoo, system)
    plain = model(**batch_of(model))
    assert set(plain) == {"loss", "logits"}
    model.set_attn_implementation("eager")
    seen = Inputs(model)
    output = model(**batch_of(model), **WHOLE)
    with model.attending(model.prefill(model.batch_of(**batch_of(model)))):
        expected = model.slm(**seen.keywords | WHOLE)
    close(output.logits, plain.logits)
    names = {"hidden_states": "decoder_hidden_states", "attentions": "decoder_attentions"}
    found = 0
    for name in ("hidden_states", "attentions", "cross_attentions", "decoder_hidden_states", "decoder_attentions",
                 "encoder_hidden_states", "encoder_attentions"):  # fmt: skip
        states = expected.get(name)
        if not states:  # GPT-2 without cross-attention has an empty tuple
            continue
        given = output[names.get(name, name)]
        assert len(given) == len(states) >= 1
        for one, other in zip(given, states, strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                assert torch.equal(one, other)
                found += 1
    assert found >= 2
    assert ("cross_attentions" in output) == (system.slm == "t5" or system.mode == "memory")
    as_tuple = model(**batch_of(model), **WHOLE, return_dict=False)
    assert isinstance(as_tuple, tuple) and torch.equal(as_tuple[1], output.logits)
    assert set(model(**batch_of(model), output_hidden_states=True)) < set(output)
    model.config.output_hidden_states = True  # the config contains the defaults
    assert "decoder_hidden_states" in model(**batch_of(model))
    model.config.return_dict = False
    assert isinstance(model(**batch_of(model)), tuple)


@torch.no_grad()
def test_states_of_an_slm_alone_equal_those_of_transformers(zoo: Path, tmp_path: Path) -> None:
    for system in ALONE:
        model = built(zoo, system)
        model.save_pretrained(tmp_path / system.slm)
        model.set_attn_implementation("eager")
        auto = AutoModelForSeq2SeqLM if system.slm == "t5" else AutoModelForCausalLM
        own = auto.from_pretrained(tmp_path / system.slm, attn_implementation="eager")
        batch = batch_of(model, [0])
        output = model(**batch, **WHOLE)
        if system.slm == "t5":
            expected = own(**batch, **WHOLE)
            close(output.loss, expected.loss)
            pairs = [(output[name], expected[name]) for name in ("decoder_attentions", "encoder_hidden_states")]
        else:
            ids = torch.cat([batch["input_ids"], batch["labels"]], dim=1)
            masked = torch.cat([torch.full_like(batch["input_ids"], IGNORE_INDEX), batch["labels"]], dim=1)
            expected = own(input_ids=ids, labels=masked, **WHOLE)
            close(output.loss, expected.loss)
            pairs = [(output.decoder_attentions, expected.attentions),
                     (output.decoder_hidden_states, expected.hidden_states)]  # fmt: skip
        for one, other in pairs:
            assert len(one) == len(other) > 1
            for states, theirs in zip(one, other, strict=True):
                close(states, theirs)


def test_attentions_are_refused_for_an_implementation_without_them(zoo: Path) -> None:
    model = built(zoo, HYBRIDS[0])
    assert model.slm.config._attn_implementation == "sdpa"
    with pytest.raises(UserError, match=r"implementation is sdpa.* call model\.set_attn_implementation\('eager'\)"):
        model(**batch_of(model), output_attentions=True)


@pytest.mark.parametrize("system", representatives(SYSTEMS, FEW), ids=named)
@torch.no_grad()
def test_decoder_input_ids_replace_labels(zoo: Path, system: System) -> None:
    model = built(zoo, system)
    batch = batch_of(model)
    labels = batch.pop("labels")
    expected = model(**batch, labels=labels)
    prepared = model.prepare_decoder_input_ids_from_labels(labels=labels)
    assert prepared.shape == labels.shape and int(prepared.min()) >= 0
    output = model(**batch, decoder_input_ids=prepared)
    assert "loss" not in output
    real = labels != IGNORE_INDEX
    close(output.logits[real], expected.logits[real])
    both = model(**batch, decoder_input_ids=prepared, labels=labels)
    close(both.loss, expected.loss)
    other = prepared.clone()
    other[:, 2] = 7  # the third token affects the logits from its position on
    changed = model(**batch, decoder_input_ids=other, labels=labels).logits
    close(changed[:, :2], expected.logits[:, :2])
    assert not torch.allclose(changed[:, 2:], output.logits[:, 2:], atol=1e-3)
    with pytest.raises(ValueError, match=r"no labels: to generate, use generate;.*prepare_decoder_input_ids_from"):
        model(**batch)


def test_unsupported_inputs_are_refused(zoo: Path) -> None:
    model = built(zoo, HYBRIDS[0])
    with pytest.raises(TypeError, match=r"LLM2SLM\.forward does not take decoder_attention_mask, inputs_embeds; give"):
        model(**batch_of(model), inputs_embeds=torch.ones(1), decoder_attention_mask=torch.ones(1), other=None)


# Embeddings


@pytest.mark.parametrize(
    "system", representatives([*SYSTEMS, System("t5", "bart", "memory", "shared")], FEW), ids=named
)
@torch.no_grad()
def test_resized_embeddings_keep_the_logits_and_are_saved(zoo: Path, tmp_path: Path, system: System) -> None:
    model = built(zoo, system)
    batch, size = batch_of(model), model.slm.config.vocab_size
    assert model.get_input_embeddings() is model.slm.get_input_embeddings()
    assert model.get_output_embeddings() is model.slm.get_output_embeddings()
    assert model.config.get_text_config().vocab_size == size
    before = model(**batch).logits
    new = model.resize_token_embeddings(size + 5, mean_resizing=False)
    assert new is model.get_input_embeddings() and new.num_embeddings == model.vocab_size == size + 5
    logits = model(**batch).logits
    assert logits.shape[-1] == size + 5
    close(logits[..., :size], before)
    head = model.get_output_embeddings()
    assert list(head._forward_pre_hooks.values()) == [_contiguous]
    assert model.config.get_text_config().vocab_size == model.config.slm.vocab_size == size + 5
    batch["labels"][0, 1] = size + 2  # a new token is embedded and generated
    ids = model.generate(**batch, **EIGHT, suppress_tokens=list(range(size)))
    assert int(ids.min()) >= size
    logits = model(**batch).logits
    model.save_pretrained(tmp_path)
    again = LLM2SLM.from_pretrained(tmp_path)
    assert torch.equal(again(**batch).logits, logits)
    assert again.resize_token_embeddings(size).num_embeddings == size
    batch["labels"][0, 1] = batch_of(model)["labels"][0, 1]
    close(again(**batch).logits, before)


@torch.no_grad()
def test_embeddings_are_set_in_the_slm(zoo: Path) -> None:
    model = built(zoo, HYBRIDS[1])
    doubled = copy.deepcopy(model.get_input_embeddings())
    doubled.weight.mul_(2)
    model.set_input_embeddings(doubled)
    assert model.slm.transformer.wte is doubled
    head = copy.deepcopy(model.get_output_embeddings())
    head._forward_pre_hooks.clear()
    model.set_output_embeddings(head)
    assert model.slm.lm_head is head and _contiguous in head._forward_pre_hooks.values()


def test_generation_uses_the_settings_of_the_slm(zoo: Path) -> None:
    model = built(zoo, HYBRIDS[0])
    assert LLM2SLM.can_generate() and model.can_generate()
    assert model.generation_config is model.slm.generation_config
    assert model.generation_config.eos_token_id == model.collator.eos_id


# Gradient checkpointing


def gradients(model: LLM2SLM) -> dict[str, Tensor]:
    model.zero_grad()
    torch.manual_seed(0)
    model(**batch_of(model)).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def calls_of_norms(part: nn.Module) -> list[nn.Module]:
    """A list with an entry for each call of a norm in the part."""
    calls: list[nn.Module] = []
    for module in part.modules():
        if "norm" in type(module).__name__.lower():
            module.register_forward_hook(lambda module, *_: calls.append(module))
    return calls


@pytest.mark.parametrize(
    "system", representatives([s for s in SYSTEMS if s.mode != "kv"], [s for s in FEW if s.mode != "kv"]), ids=named
)
@pytest.mark.parametrize("reentrant", representatives([False, True], [False]))
def test_checkpointing_does_not_change_the_gradients(zoo: Path, system: System, reentrant: bool) -> None:
    model = built(zoo, system).train()  # with dropout
    expected = gradients(model)
    norms, of_llm = calls_of_norms(model.slm), calls_of_norms(model.encoder or nn.Module())
    gradients(model)
    once, llm_once = len(norms), len(of_llm)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert model.slm.is_gradient_checkpointing
    norms.clear(), of_llm.clear()
    found = gradients(model)
    assert len(norms) > once and len(of_llm) == llm_once  # blocks of the SLM are computed twice, the LLM once
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        close(found[name], gradient)
    model.gradient_checkpointing_disable()
    norms.clear()
    gradients(model)
    assert len(norms) == once


def test_checkpointing_is_refused_if_the_prompt_is_in_the_cache(zoo: Path) -> None:
    prefixed = tiny_model_config(zoo, slm="gpt2")
    prefixed.slm.tune = "prefix"
    kinds = [built(zoo, system) for system in HYBRIDS if system.mode == "kv"]
    for model in [*kinds, build_model(prefixed)]:
        model.train()
        model.gradient_checkpointing_enable()
        with pytest.raises(UserError, match=r"^gradient checkpointing: the .* in the SLM's cache, .*; call model\."):
            model(**batch_of(model))
        model.gradient_checkpointing_disable()
        assert torch.isfinite(model(**batch_of(model)).loss)


# Attention implementations


@pytest.mark.parametrize("system", representatives(SYSTEMS, FEW), ids=named)
@torch.no_grad()
def test_attention_implementations_are_set_in_all_parts(zoo: Path, tmp_path: Path, system: System) -> None:
    model = built(zoo, system)
    parts = [module for module in model.modules() if isinstance(module, PreTrainedModel) and module is not model]
    assert any(part is model.slm for part in parts)
    assert (model.encoder is None) or any(part is model.encoder.body for part in parts)
    expected = model(**batch_of(model)).logits
    for name in ("eager", "sdpa"):
        model.set_attn_implementation(name)
        assert {part.config._attn_implementation for part in parts} == {name}
        assert model.config._attn_implementation == model.config.slm._attn_implementation == name
        torch.testing.assert_close(model(**batch_of(model)).logits, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="no_such"):
        model.set_attn_implementation("no_such")
    model.save_pretrained(tmp_path)
    again = LLM2SLM.from_pretrained(tmp_path, attn_implementation="eager")
    assert again.slm.config._attn_implementation == "eager"
    assert model.encoder is None or again.encoder.body.config._attn_implementation == "eager"


# from_pretrained


@pytest.mark.parametrize("system", representatives(SYSTEMS, FEW), ids=named)
@torch.no_grad()
def test_dtype_is_applied_to_the_slm(zoo: Path, tmp_path: Path, system: System) -> None:
    model = built(zoo, system)
    model.save_pretrained(tmp_path / "a")
    load = LLM2SLM.from_pretrained if system.alone else AutoModelForSeq2SeqLM.from_pretrained
    half, info = load(tmp_path / "a", dtype=torch.bfloat16, output_loading_info=True)
    assert isinstance(half, LLM2SLM) and not any(info.values())
    assert {"missing_keys", "unexpected_keys", "mismatched_keys"} <= set(info)
    assert half.dtype == half.slm.config.dtype == torch.bfloat16
    state = model.state_dict()
    for name, tensor in half.state_dict().items():
        wanted = torch.bfloat16 if name.startswith("slm.") else torch.float32
        assert tensor.dtype == wanted and torch.equal(tensor, state[name].to(wanted)), name
    if model.encoder is not None:
        assert torch.equal(half.represent(model.collator.batch_of_texts(TEXTS)).reps_BPE,
                           model.represent(model.collator.batch_of_texts(TEXTS)).reps_BPE)  # fmt: skip
    batch = batch_of(model)
    output, expected = half(**batch), model(**batch)
    assert output.logits.dtype == torch.bfloat16
    assert abs(float(output.loss - expected.loss)) < 0.05 * float(expected.loss)
    if system.alone:  # the transformers model in the same dtype
        auto = AutoModelForSeq2SeqLM if system.slm == "t5" else AutoModelForCausalLM
        own = auto.from_pretrained(tmp_path / "a", dtype=torch.bfloat16)
        assert all(torch.equal(tensor, half.slm.state_dict()[name]) for name, tensor in own.state_dict().items())
    half.save_pretrained(tmp_path / "b")
    again = load(tmp_path / "b")
    assert again.dtype == torch.bfloat16 and torch.equal(again(**batch).logits, output.logits)
    back = load(tmp_path / "b", torch_dtype="float32")  # the earlier name of the argument
    assert back.dtype == torch.float32
    close(back(**batch).loss, cross_entropy(back(**batch).logits.transpose(1, 2), batch["labels"]))


def test_modules_that_transformers_keeps_in_float32_are_kept(zoo: Path, tmp_path: Path) -> None:
    built(zoo, HYBRIDS[0]).save_pretrained(tmp_path)
    model = LLM2SLM.from_pretrained(tmp_path, dtype="float16")
    for name, parameter in model.slm.named_parameters():
        assert parameter.dtype == (torch.float32 if ".wo." in name else torch.float16), name
    with torch.no_grad():
        assert torch.isfinite(model(**batch_of(model)).loss)
    named = LLM2SLM.from_pretrained(pretrained_model_name_or_path=tmp_path, dtype="auto")
    assert named.dtype == torch.float32
    with pytest.raises(TypeError, match="needs the name of a saved model"):
        LLM2SLM.from_pretrained(dtype="auto")
    with pytest.raises(UserError, match=r"dtype=int8: give torch\.float32, torch\.bfloat16"):
        LLM2SLM.from_pretrained(tmp_path, dtype="int8")
    with pytest.raises(TypeError, match=r"takes name, llm, revision, dtype, .*, not ignore_mism"):
        LLM2SLM.from_pretrained(tmp_path, subfolder="a", ignore_mismatched_sizes=True)


def test_an_added_token_is_saved_with_its_embedding(zoo: Path, tmp_path: Path) -> None:
    model = build_model(tiny_model_config(zoo, slm="gpt2", kind=SystemKind.slm)).eval()
    tokenizer = model.processor.tokenizer
    size = len(tokenizer)
    assert tokenizer.get_vocab() == tiny_tokenizer("llm").get_vocab()
    tokenizer.add_tokens(["<new>"])
    model.resize_token_embeddings(size + 1)
    model.save_pretrained(tmp_path)
    again = LLM2SLM.from_pretrained(tmp_path)
    inputs = again.processor(["the <new> dog"])
    assert size in inputs["input_ids"][0].tolist()
    assert torch.equal(again.generate(**inputs, **EIGHT), model.generate(**inputs, **EIGHT))
