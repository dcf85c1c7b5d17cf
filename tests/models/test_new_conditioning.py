"""A conditioning that is registered outside the package: one class, and training, generation and saving work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from llm2slm.cli import reads
from llm2slm.commands.export import cast_weights
from llm2slm.config import RunConfig
from llm2slm.evaluation.benchmark import costs
from llm2slm.models import conditioning
from llm2slm.models.build import build_model
from llm2slm.models.conditioning import Conditioning
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.models.matrix_shapes import HybridShapes, PromptCost
from llm2slm.models.prompt import Prompt
from llm2slm.models.sequences import concatenate
from llm2slm.testing import labelled, tiny_model_config, tiny_rows
from llm2slm.types import IGNORE_INDEX, Batch, Reps, Tokenizers, UserError


class Summary(Conditioning):
    """One position in front of the prompt: a linear map of the mean of z."""

    def misfit(self, slm: Any) -> str | None:
        return "it is an encoder-decoder" if slm.config.is_encoder_decoder else None

    def modules(self, config: Any, slm: Any, encoder: Any) -> dict[str, nn.Module]:
        width = slm.get_input_embeddings().embedding_dim
        return super().modules(config, slm, encoder) | {"summary": nn.Linear(width, width)}

    def prompt(self, model: Any, batch: Batch, z: Reps) -> Prompt:
        mask_BP1 = z.mask_BP.unsqueeze(-1).to(z.reps_BPE.dtype)
        mean_B1D = (z.reps_BPE * mask_BP1).sum(1, keepdim=True) / mask_BP1.sum(1, keepdim=True)
        embeds_BQD, one_B1 = model.prompt_embeddings(batch, z), batch.slm_mask_BQ.new_ones(len(mean_B1D), 1)
        return Prompt(*concatenate(model.summary(mean_B1D), one_B1, embeds_BQD, batch.slm_mask_BQ, pad_left=True))

    def positions(self, config: Any, own: int, llm: int) -> int:
        return own + 1

    def cost(self, shapes: HybridShapes) -> PromptCost:
        return replace(super().cost(shapes), read=shapes.prompt_tokens + 1)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditioning, "_registered", {})
    conditioning.register("summary", Summary)


def test_a_registered_conditioning_is_trained_generates_and_is_loaded(zoo: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_model(tiny_model_config(zoo, "t5", "gpt2", "summary", Tokenizers.offsets))
    assert {name.partition(".")[0] for name in model.trainable_names()} == {"projector", "slm", "summary"}
    batch = labelled(model, [0, 1, 2])
    before = model.summary.weight.detach().clone()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    loss = nn.functional.cross_entropy(
        model.logits(batch).flatten(0, 1), batch.labels_BT.flatten(), ignore_index=IGNORE_INDEX
    )
    loss.backward()
    optimizer.step()
    assert not torch.equal(model.summary.weight, before)

    model.eval()
    prompt = model.prefill(batch)
    assert prompt.mask_BQ.sum(1).tolist() == (batch.slm_mask_BQ.sum(1) + 1).tolist()
    texts, length = [row["source"] for row in tiny_rows()], {"max_new_tokens": 5, "min_new_tokens": 5}
    together = model.generate_text(texts, **length)
    assert together == [model.generate_text([text], **length)[0] for text in texts]
    model.save_pretrained(tmp_path)
    again = LLM2SLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again.logits(batch), model.logits(batch))
    assert again.conditioning == "summary" and again.generate_text(texts, **length) == together


def test_all_modules_of_a_registered_conditioning_are_cast_for_export(zoo: Path) -> None:
    model = build_model(tiny_model_config(zoo, "t5", "gpt2", "summary", Tokenizers.offsets))
    cast_weights(model, "bfloat16")
    dtypes = {name.partition(".")[0]: parameter.dtype for name, parameter in model.named_parameters()}
    trained = dict.fromkeys(("slm", "projector", "summary"), torch.bfloat16)
    assert dtypes == trained | {"encoder": torch.float32}


def test_options_of_a_registered_conditioning_are_reported_as_read(monkeypatch: pytest.MonkeyPatch) -> None:
    config = RunConfig()
    config.model.conditioning = "summary"
    rows = [reads.MODEL[key] for key in ("cross_every", "kv_blocks", "llm.layer", "projector.norm")]
    assert [row.read("train", config) for row in rows] == [False, False, True, True]
    monkeypatch.setattr(Summary, "options", ("cross_every",))
    monkeypatch.setattr(Summary, "uses_projector", False)
    assert [row.read("train", config) for row in rows] == [True, False, True, False]
    words = "read with model.kind=llm2slm and "
    assert [row.where("train") for row in rows] == [
        f"{words}model.conditioning=cross_attention or summary", f"{words}model.conditioning=kv",
        f"{words}a conditioning other than kv", f"{words}a conditioning other than kv or summary",
    ]  # fmt: skip


def test_a_registered_conditioning_has_a_cost_and_refuses_unsupported_slms(zoo: Path) -> None:
    with pytest.raises(UserError, match=r"summary does not fit a t5 \(it is an encoder-decoder\); possible: add, mem"):
        build_model(tiny_model_config(zoo, "t5", "t5", "summary"))
    slm = {"model_type": "gpt2", "n_layer": 2, "n_embd": 8, "n_head": 2, "n_inner": None, "vocab_size": 11}
    given = {"llm_config": slm, "projector_shape": (8, 0, 8)}
    cost, longer = (costs.generation_cost(slm, n, 3, llm_tokens=4, conditioning=name, **given)
                    for n, name in ((5, "summary"), (6, "add")))  # fmt: skip
    assert cost == longer


def test_names_are_unique_and_an_unknown_name_is_refused(zoo: Path) -> None:
    with pytest.raises(ValueError, match="summary exists already"):
        conditioning.register("summary", Summary)
    with pytest.raises(ValueError, match="add exists already"):
        conditioning.register("add", Summary)
    with pytest.raises(UserError, match=r"model\.conditioning=nope is unknown; possible: add, cross_attention, kv, "):
        build_model(tiny_model_config(zoo, conditioning="nope"))


@pytest.mark.parametrize("name", conditioning.names())
def test_every_module_of_the_package_is_a_conditioning(name: str) -> None:
    found = conditioning.get(name)
    assert found.name == name and isinstance(found, Conditioning)
    assert (type(found).__doc__ or "").strip()
