"""LLM family x SLM family x conditioning x tokenizers: each cell is trained, saved, loaded, generated from, and checked
against the invariants of the design.

By default every value is in at least one cell; with --slow every valid pair of values is; `make matrix` runs all cells.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from matrix import CELLS, DECODERS, ENCODER_DECODERS, FEW, LLMS, Cell, all_cells, covering, groups
from sampling import representatives
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoProcessor

from llm2slm.models import slm as language_model
from llm2slm.models.build import build_model
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.models.projector import Projector
from llm2slm.testing import labelled, tiny_model_config, tiny_rows
from llm2slm.types import IGNORE_INDEX, Batch, Reps, Tokenizers


@pytest.mark.parametrize("size", [1, 2])
def test_the_subset_covers_every_value_and_every_pair(size: int) -> None:
    found, wanted = covering(all_cells(), size), all_cells()
    assert set().union(*(groups(cell, size) for cell in found)) == set().union(*(groups(c, size) for c in wanted))
    assert len(all_cells()) > 1000 and len(LLMS) >= 8 and len(ENCODER_DECODERS + DECODERS) >= 6


def logits(model: LLM2SLM, batch: Batch, reps: Reps | None = None) -> Tensor:
    with torch.no_grad():
        return model.logits(batch, reps)


def loss_of(model: LLM2SLM, batch: Batch) -> Tensor:
    return cross_entropy(model.logits(batch).transpose(1, 2), batch.labels_BT, ignore_index=IGNORE_INDEX)


def most_likely(model: LLM2SLM, batch: Batch, ids: list[int]) -> list[int]:
    """The next token after each prefix of `ids`, without a cache, by teacher-forced logits only; one row.

    If the result is `ids`, they are the output of a plain greedy loop.
    """
    prompt = model.prefill(batch)
    with torch.no_grad(), model.attending(prompt):
        steps = language_model.response_output(model.slm, prompt, torch.tensor([ids])).logits[0]
    steps[:, model.collator.slm_tokenizer.eos_token_id] = -torch.inf
    return steps.argmax(-1).tolist()


@pytest.mark.parametrize("cell", representatives(CELLS, FEW, whole=True), ids="-".join)
def test_a_cell_satisfies_the_invariants(cell: Cell, zoo: Path, tmp_path: Path) -> None:
    llm, slm, mode, tokenizers = cell
    torch.manual_seed(7)
    model = build_model(tiny_model_config(zoo, llm, slm, mode, Tokenizers(tokenizers)))
    if isinstance(model.projector, Projector):
        model.projector.layers[-1].weight.data.mul_(4)
    elif model.projector.weight is not None:  # otherwise it is zero
        model.projector.weight.data.normal_(std=0.5)
    if model.crossing is not None:
        for layer in model.crossing.layers:
            layer.gate.data.fill_(1.0)
    batch = labelled(model, [0, 1, 2])
    assert len(set(batch.llm_mask_BP.sum(1).tolist())) == 3  # otherwise nothing is padded

    # three steps of training: the LLM is unchanged, and only the projector's and the SLM's parameters may change
    frozen = {n: t.clone() for n, t in [*model.encoder.named_parameters(), *model.encoder.named_buffers()]}
    assert {n.partition(".")[0] for n in model.trainable_names()} <= {"projector", "slm", "crossing"}
    assert not [n for n, p in model.named_parameters() if p.requires_grad == n.startswith("encoder.")]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    before = loss_of(model.eval(), batch).item()  # without dropout
    model.train()
    for _ in range(3):
        loss = loss_of(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss_of(model.eval(), batch).item() < before
    model.train()
    for name, tensor in [*model.encoder.named_parameters(), *model.encoder.named_buffers()]:
        assert torch.equal(tensor, frozen[name]), name
    assert not any(module.training for module in model.encoder.modules())
    assert all(p.grad is not None for p in model.projector.parameters())

    # z affects the response; vectors at padding do not; a padded batch equals its rows one by one
    model.eval()
    real = batch.labels_BT != IGNORE_INDEX
    together, reps = logits(model, batch), model.represent(batch)
    silent = Reps(torch.zeros_like(reps.reps_BPE), reps.mask_BP)
    assert (together - logits(model, batch, silent))[real].abs().max() > 1e-3
    noise = Reps(reps.reps_BPE.masked_fill(~reps.mask_BP.unsqueeze(-1).bool(), 9.0), reps.mask_BP)
    torch.testing.assert_close(logits(model, batch, noise)[real], together[real], rtol=1e-4, atol=1e-4)
    for row in range(3):
        alone = logits(model, labelled(model, [row]))
        torch.testing.assert_close(together[row][real[row]], alone[0], rtol=1e-3, atol=1e-3)

    # the loaded model equals the saved one; generation with a cache equals a loop without one
    texts = [row["source"] for row in tiny_rows()]
    length = {"max_new_tokens": 6, "min_new_tokens": 6}
    model.save_pretrained(tmp_path)
    again = LLM2SLM.from_pretrained(tmp_path)
    assert torch.equal(logits(again, batch), together)
    ids = again.generate(**AutoProcessor.from_pretrained(tmp_path)(texts), **length)
    for row, text in zip(ids.tolist(), texts, strict=True):
        assert row == most_likely(model, model.collator.batch_of_texts([text]), row), text
    assert model.generate_text(texts, **length) == model.collator.decode(ids)

    # beams keep their prompt: each response has the log-probability that generate reports
    settings = {"num_beams": 2, "length_penalty": 0.0, "output_scores": True, "return_dict_in_generate": True}
    beams = model.generate(batch, **settings, **length)
    scores = logits(model, replace(batch, labels_BT=beams.sequences)).log_softmax(-1)
    totals = scores.gather(2, beams.sequences.unsqueeze(-1)).sum((1, 2))
    torch.testing.assert_close(totals, beams.sequences_scores, rtol=1e-3, atol=1e-3)
