"""model.llm.prefix and model.llm.chat: the LLM gets a separate prompt; the SLM does not see it, and it is saved."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sampling import representatives

from llm2slm.models.build import build_model
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.testing import tiny_model_config, tiny_tokenizer
from llm2slm.types import Example, SystemKind, Tokenizers

TEXTS = ["the old dog sees a house.", "two dogs"]
MOMENT = "{% for m in messages %}{{ strftime_now('%S%f') }} {{ m['content'] }} answer:{% endfor %}"
"""A chat template with a different result at each call, like templates that contain the date."""


def hybrid(folder: Path, mode: str = "add", cut: str = "shared", kind: str = "llm2slm", **llm: object) -> LLM2SLM:
    config = tiny_model_config(folder, "t5", "gpt2", mode, Tokenizers(cut))
    config.kind = SystemKind(kind)
    for key, value in llm.items():
        setattr(config.llm, key, value)
    torch.manual_seed(1)
    model = build_model(config).eval()
    if model.projector is not None:
        model.projector.layers[-1].weight.data.mul_(4)
    for layer in model.crossing.layers if model.crossing is not None else ():
        layer.gate.data.fill_(1.0)
    return model


def logits(model: LLM2SLM) -> torch.Tensor:
    examples = [Example(i, text, text, "it sees") for i, text in enumerate(TEXTS)]
    with torch.no_grad():
        return model.logits(model.collator(model.collator.encode(examples)))


@pytest.mark.parametrize("mode", representatives(["add", "prepend", "cross_attention"], ["prepend"]))
@pytest.mark.parametrize("tokenizers", ["shared", "offsets", "llm_tokens"])
def test_the_prefix_is_part_of_the_llms_prompt_only(zoo: Path, tmp_path: Path, mode: str, tokenizers: str) -> None:
    plain, model = (hybrid(zoo, mode, tokenizers, **llm) for llm in ({}, {"prefix": "two old: "}))
    batch, own = (m.collator.batch_of_texts(TEXTS) for m in (model, plain))
    with_prefix = plain.collator.batch_of_texts([f"two old: {text}" for text in TEXTS])
    order = with_prefix.llm_mask_BP.bool(), batch.llm_mask_BP.bool()  # padding may be on the other side
    assert torch.equal(batch.llm_ids_BP[order[1]], with_prefix.llm_ids_BP[order[0]])
    if tokenizers != "llm_tokens":  # otherwise the SLM processes the LLM's tokens, including the prefix
        assert torch.equal(batch.slm_ids_BQ, own.slm_ids_BQ)
    assert not torch.allclose(logits(model), logits(plain), atol=1e-3)
    model.save_pretrained(tmp_path)
    length = {"max_new_tokens": 8, "min_new_tokens": 8}
    assert LLM2SLM.from_pretrained(tmp_path).generate_text(TEXTS, **length) == model.generate_text(TEXTS, **length)


@pytest.mark.parametrize("kind", ["llm2slm", "llm"])
def test_the_result_of_a_chat_template_that_depends_on_the_time_is_saved(tmp_path: Path, kind: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = MOMENT
    tokenizer.save_pretrained(tmp_path / "chat")
    model = hybrid(tmp_path, kind=kind, chat=True, tokenizer=str(tmp_path / "chat"))
    again = hybrid(tmp_path, kind=kind, chat=True, tokenizer=str(tmp_path / "chat"))
    assert model.config.llm_frame != again.config.llm_frame
    model.save_pretrained(tmp_path / "saved")
    loaded = LLM2SLM.from_pretrained(tmp_path / "saved")
    assert loaded.config.llm_frame == model.config.llm_frame
    batch, found = (m.collator.batch_of_texts(TEXTS) for m in (model, loaded))
    name = "slm_ids_BQ" if kind == "llm" else "llm_ids_BP"
    assert torch.equal(getattr(batch, name), getattr(found, name))
    assert "answer:" in tokenizer.decode(getattr(found, name)[0])


def test_the_slm_alone_has_no_prefix_of_the_llm(zoo: Path) -> None:
    assert hybrid(zoo, kind="slm", prefix="two old: ").config.llm_frame is None
