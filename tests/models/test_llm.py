"""A single copy of an LLM for encoder and complete model, and its record in a saved hybrid."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sampling import representatives
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from llm2slm.config import LLMConfig
from llm2slm.models.build import build_llm, build_model
from llm2slm.models.encoder import FrozenEncoder
from llm2slm.models.hybrid_config import LLM2SLMConfig
from llm2slm.models.llm import LLMRecord, share_weights
from llm2slm.models.saving import own_fingerprint
from llm2slm.testing import labelled, tiny_model_config, tiny_tokenizer, write_tiny, write_tiny_gpt2
from llm2slm.types import Tokenizers, UserError

IDS, MASK = torch.tensor([[5, 9, 12, 7], [8, 6, 0, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])


@pytest.fixture(scope="module", params=representatives(["t5", "gpt2", "llama", "opt", "gemma2"], ["t5", "llama"]))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(request.param, tmp_path_factory.mktemp("llm") / request.param, seed=1)


def pointers(model: torch.nn.Module) -> set[int]:
    return {tensor.data_ptr() for tensor in model.parameters()}


@torch.no_grad()
def test_a_hybrid_shares_the_tensors_of_the_complete_llm(folder: Path, zoo: Path) -> None:
    decoder_only = folder.name != "t5"
    oracle = (AutoModelForCausalLM if decoder_only else AutoModelForSeq2SeqLM).from_pretrained(folder).eval()
    inputs = {"input_ids": IDS, "attention_mask": MASK} | ({} if decoder_only else {"decoder_input_ids": IDS})
    whole = build_llm(LLMConfig(name=str(folder)))
    names = [name for name, _ in whole.named_modules()]
    for layer in (None, 1, 0, [1, 2], -1) if decoder_only else (None, 1):
        cfg = replace(tiny_model_config(zoo), llm=LLMConfig(name=str(folder), layer=layer))
        hybrid = build_model(cfg).eval()
        batch, before = labelled(hybrid, [0, 1, 2]), hybrid.encoder
        expected, loaded, saved = hybrid.logits(batch), pointers(before), own_fingerprint(hybrid)
        counts = hybrid.parameter_counts()
        assert not loaded & pointers(whole)
        assert share_weights(hybrid, whole)
        assert pointers(hybrid.encoder) <= pointers(whole) and len(pointers(hybrid.encoder)) == len(loaded)
        assert torch.equal(hybrid.logits(batch), expected)
        assert (hybrid.encoder.fingerprint(), hybrid.encoder.layers) == (before.fingerprint(), before.layers)
        assert (own_fingerprint(hybrid), hybrid.parameter_counts()) == (saved, counts)
        assert [name for name, _ in whole.named_modules()] == names
        assert torch.equal(whole.slm(**inputs).logits, oracle(**inputs).logits)
        assert hybrid.encoder._states is None  # hidden states are not kept while the LLM generates
        hybrid.train()
        assert not any(module.training for module in whole.modules())


@torch.no_grad()
def test_keys_and_values_are_computed_with_shared_tensors(zoo: Path) -> None:
    cfg = tiny_model_config(zoo, "gpt2", "gpt2", "kv")
    hybrid, whole = build_model(cfg).eval(), build_llm(cfg.llm)
    batch = labelled(hybrid, [0, 1, 2])
    expected = hybrid.logits(batch)
    assert share_weights(hybrid, whole) and pointers(hybrid.encoder) <= pointers(whole)
    assert torch.equal(hybrid.logits(batch), expected)


def test_an_encoder_with_other_weights_is_not_replaced(zoo: Path, tmp_path: Path) -> None:
    cfg = tiny_model_config(zoo, "gpt2", "t5", "memory", Tokenizers.offsets)
    cfg.llm.layer = 3
    hybrid = build_model(cfg)
    encoder = hybrid.encoder
    others = {
        "seed": replace(cfg.llm, name=str(write_tiny_gpt2(tmp_path / "other", seed=99))),
        "dtype": replace(cfg.llm, dtype="bfloat16"),
        "attention": replace(cfg.llm, attn_implementation="eager"),
        "depth": replace(cfg.llm, name=str(write_tiny_gpt2(tmp_path / "shallow", layers=1))),
    }
    for other in others.values():
        assert not share_weights(hybrid, build_llm(other)) and hybrid.encoder is encoder
    alone = build_llm(cfg.llm)
    assert not share_weights(alone, alone) and alone.encoder is None


def test_an_encoder_of_a_loaded_model_does_not_change_the_model(folder: Path) -> None:
    model = AutoModel.from_pretrained(folder)
    names, keys = [name for name, _ in model.named_modules()], list(model.state_dict())
    first, second = FrozenEncoder(model, 1), FrozenEncoder(model, 2)
    assert [name for name, _ in model.named_modules()] == names and list(model.state_dict()) == keys
    found = first(IDS, MASK).reps_BPE, second(IDS, MASK).reps_BPE
    assert torch.equal(found[0], first(IDS, MASK).reps_BPE) and not torch.equal(*found)


def test_a_record_equals_the_saved_json(zoo: Path) -> None:
    llm = LLMConfig(name=str(zoo / "llm_t5"), prefix="read: ", layer=1)
    model = build_model(replace(tiny_model_config(zoo), llm=llm))
    record = LLMRecord.read(model.config)
    assert record.saved() == model.config.llm and "frame" not in model.config.llm
    assert set(model.config.llm) == {
        "name", "revision", "layer", "dtype", "config", "prefix", "chat", "attn_implementation", "quantization",
        "width", "init", "fingerprint",
    }  # fmt: skip
    assert record.frame == model.config.llm_frame and record.frame["prefix"] == "read: "
    assert record.located("elsewhere").layer == 1


def test_the_record_of_an_earlier_version_is_read() -> None:
    old = {"name": "x/y", "revision": "abc", "layer": None, "dtype": "float32", "width": 8, "init": "pretrained"}
    record = LLMRecord.read(LLM2SLMConfig(llm=old | {"unknown": 1}))
    assert (record.config, record.chat, record.fingerprint, record.random) == ({}, False, None, False)
    assert record.located("x/y").revision == "abc" and record.located("other").revision is None


def test_another_llm_is_refused(zoo: Path) -> None:
    model = build_model(tiny_model_config(zoo))
    record = replace(LLMRecord.read(model.config), fingerprint="0" * 12)
    with pytest.raises(UserError, match=r"saved: the LLM at .* is not the one it was trained with: .*\(0{12}\)"):
        record.load("saved", str(record.name), tiny_tokenizer(), None)
    with pytest.raises(UserError, match="saved: was trained on an LLM of width 7"):
        replace(record, width=7).load("saved", str(record.name), tiny_tokenizer(), None)
