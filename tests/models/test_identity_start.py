"""Conditioning `memory` with the LLM's decoder as SLM: before training it attends to the unchanged LLM states."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

from llm2slm.config import ModelConfig, ProjectorConfig
from llm2slm.models.build import build_model
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.testing import labelled, tiny_model_config
from llm2slm.types import IGNORE_INDEX, Start, UserError


def config(zoo: Path, family: str, layers: list[int] | None = None) -> ModelConfig:
    """The LLM is also the SLM, its decoder cut to some blocks."""
    cfg = tiny_model_config(zoo, family, family, "memory")
    layered = None if layers is None else {"decoder": layers}
    slm = replace(cfg.slm, name=cfg.llm.name, tokenizer=cfg.llm.tokenizer, layers=layered)
    return replace(cfg, slm=slm, projector=ProjectorConfig())


@torch.no_grad()
@pytest.mark.parametrize("layers", [None, [1, 3]], ids=str)
@pytest.mark.parametrize("family", ["t5", "bart", "mt5", "pegasus"])
def test_a_decoder_of_the_llm_starts_as_that_decoder(
    zoo: Path, tmp_path: Path, family: str, layers: list[int] | None
) -> None:
    cfg = config(zoo, family, layers)
    model = build_model(cfg).eval()
    assert model.config.projector["start"] == "identity"
    batch = labelled(model, [0, 1, 2])
    # the transformers model, its decoder without the other blocks
    whole = AutoModelForSeq2SeqLM.from_pretrained(cfg.llm.name).eval()
    decoder = whole.get_decoder()
    blocks = decoder.block if family in ("t5", "mt5") else decoder.layers
    for number in sorted({1, 2, 3} - set(layers or [1, 2, 3]), reverse=True):
        del blocks[number - 1]
    expected = whole(input_ids=batch.llm_ids_BP, attention_mask=batch.llm_mask_BP, use_cache=False,
                     decoder_input_ids=started(whole, batch.labels_BT)).logits  # fmt: skip
    real = batch.labels_BT != IGNORE_INDEX
    torch.testing.assert_close(model.logits(batch)[real], expected[real], rtol=1e-4, atol=1e-4)
    model.save_pretrained(tmp_path)
    assert torch.equal(LLM2SLM.from_pretrained(tmp_path).logits(batch), model.logits(batch))


def started(whole: AutoModelForSeq2SeqLM, labels_BT: torch.Tensor) -> torch.Tensor:
    start = whole.config.decoder_start_token_id
    ids = torch.full_like(labels_BT, start)
    ids[:, 1:] = labels_BT[:, :-1]
    return ids.masked_fill(ids == IGNORE_INDEX, start)


def test_every_trained_module_has_a_gradient_at_the_first_step(zoo: Path) -> None:
    model = build_model(config(zoo, "t5"))
    batch = labelled(model, [0, 1, 2])
    model.logits(batch).log_softmax(-1)[batch.labels_BT != IGNORE_INDEX][:, 5].sum().backward()
    assert model.projector.layers[-1].weight.grad.abs().max() > 0


def test_different_widths_start_at_random_and_identity_is_refused(zoo: Path) -> None:
    cfg = replace(tiny_model_config(zoo, "t5", "t5", "memory"), projector=ProjectorConfig())
    assert build_model(cfg).config.projector["start"] == "random"  # widths 24 and 16
    with pytest.raises(UserError, match=r"start=identity is for .*memory, with widths 24 and 16"):
        build_model(replace(cfg, projector=ProjectorConfig(start=Start.identity)))
    with pytest.raises(UserError, match="it is add"):
        build_model(replace(cfg, conditioning="add", projector=ProjectorConfig(start=Start.identity)))
