"""An LLM that is loaded once: its two views share every tensor, and neither changes the other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from llm2slm.config import LLMConfig
from llm2slm.models.build import build_model
from llm2slm.models.encoder import FrozenEncoder
from llm2slm.models.hybrid_config import LLM2SLMConfig
from llm2slm.models.llm import LLM, LLMRecord
from llm2slm.testing import tiny_model_config, tiny_tokenizer, write_tiny
from llm2slm.types import UserError

IDS, MASK = torch.tensor([[5, 9, 12, 7], [8, 6, 0, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])


@pytest.fixture(scope="module", params=["t5", "gpt2", "llama", "opt", "gemma2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(request.param, tmp_path_factory.mktemp("llm") / request.param, seed=1)


def pointers(model: torch.nn.Module) -> set[int]:
    return {tensor.data_ptr() for tensor in model.parameters()}


@torch.no_grad()
def test_both_views_are_the_whole_model_and_its_part(folder: Path) -> None:
    llm = LLM.load(LLMConfig(name=str(folder)), tiny_tokenizer())
    decoder_only = not llm.model.config.is_encoder_decoder
    whole = (AutoModelForCausalLM if decoder_only else AutoModelForSeq2SeqLM).from_pretrained(folder).eval()
    names = [name for name, _ in llm.model.named_modules()]
    layers = (None, 1, 0, [1, 2]) if decoder_only else (None, 1)
    inputs = {"input_ids": IDS, "attention_mask": MASK} | ({} if decoder_only else {"decoder_input_ids": IDS})
    expected = whole(**inputs).logits
    for layer in layers:
        encoder = llm.encoder(layer)
        part = LLM.load_encoder(LLMConfig(name=str(folder), layer=layer), tiny_tokenizer())
        assert torch.equal(encoder(IDS, MASK).reps_BPE, part(IDS, MASK).reps_BPE)
        assert encoder.fingerprint() == part.fingerprint()
        assert pointers(encoder) < pointers(llm.model)
        assert sum(p.numel() for p in encoder.parameters()) == sum(p.numel() for p in part.parameters())
        assert [name for name, _ in llm.model.named_modules()] == names
        assert torch.equal(llm.generator()(**inputs).logits, expected)
        assert encoder._states is None  # the generator's states are not kept
    if decoder_only:
        assert torch.equal(
            llm.encoder(kv_blocks=[1, 2])(IDS, MASK).reps_BPE,
            LLM.load_encoder(LLMConfig(name=str(folder)), tiny_tokenizer(), [1, 2])(IDS, MASK).reps_BPE,
        )


def test_an_encoder_of_a_live_model_leaves_it_whole(folder: Path) -> None:
    model = AutoModel.from_pretrained(folder)
    names, keys = [name for name, _ in model.named_modules()], list(model.state_dict())
    first, second = FrozenEncoder(model, 1), FrozenEncoder(model, 2)
    assert [name for name, _ in model.named_modules()] == names and list(model.state_dict()) == keys
    found = first(IDS, MASK).reps_BPE, second(IDS, MASK).reps_BPE
    assert torch.equal(found[0], first(IDS, MASK).reps_BPE) and not torch.equal(*found)


def test_a_record_is_the_saved_json_and_back(zoo: Path) -> None:
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
