"""The loss against transformers' own, against a hand-written log-softmax, and where it must not look."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM
from transformers.trainer_pt_utils import LabelSmoother

from llm2slm.testing import write_tiny_gpt2, write_tiny_t5
from llm2slm.training.objectives import token_cross_entropy
from llm2slm.types import IGNORE_INDEX


@pytest.fixture
def labels_BT() -> torch.Tensor:
    labels = torch.randint(2, 250, (3, 7), generator=torch.Generator().manual_seed(1))
    labels[1, 4:] = IGNORE_INDEX
    labels[2, 1:] = IGNORE_INDEX
    return labels


def test_it_is_transformers_loss_of_a_t5(tmp_path, labels_BT):
    model = AutoModelForSeq2SeqLM.from_pretrained(write_tiny_t5(tmp_path)).eval()
    out = model(input_ids=torch.arange(15).reshape(3, 5), labels=labels_BT)
    total, tokens = token_cross_entropy(out.logits, labels_BT)
    assert tokens == 7 + 4 + 1
    torch.testing.assert_close(total / tokens, out.loss, rtol=1e-6, atol=1e-6)


def test_it_is_transformers_loss_of_a_gpt2(tmp_path, labels_BT):
    model = AutoModelForCausalLM.from_pretrained(write_tiny_gpt2(tmp_path)).eval()
    prompt = torch.arange(9).reshape(3, 3)
    ids = torch.cat([prompt, labels_BT.clamp(min=0)], 1)
    out = model(input_ids=ids, labels=torch.cat([torch.full_like(prompt, IGNORE_INDEX), labels_BT], 1))
    total, tokens = token_cross_entropy(out.logits[:, 2:-1], labels_BT)  # transformers shifts by itself, we do not
    torch.testing.assert_close(total / tokens, out.loss, rtol=1e-6, atol=1e-6)


def test_it_is_label_smoothing_of_transformers(labels_BT):
    logits = torch.randn(3, 7, 250, generator=torch.Generator().manual_seed(2))
    total, tokens = token_cross_entropy(logits, labels_BT, label_smoothing=0.1)
    expected = LabelSmoother(0.1, IGNORE_INDEX)({"logits": logits}, labels_BT.clone())
    torch.testing.assert_close(total / tokens, expected, rtol=1e-6, atol=1e-6)


def test_by_hand():
    logits = torch.tensor([[[0.0, math.log(3)], [5.0, -5.0], [0.0, 0.0]]])
    total, tokens = token_cross_entropy(logits, torch.tensor([[1, IGNORE_INDEX, 0]]))
    assert tokens == 2
    assert total.item() == pytest.approx(math.log(4 / 3) + math.log(2), rel=1e-6)


def test_ignored_positions_have_no_value_and_no_gradient(labels_BT):
    logits = torch.randn(3, 7, 250, generator=torch.Generator().manual_seed(3)).requires_grad_()
    token_cross_entropy(logits, labels_BT)[0].backward()
    ignored = labels_BT == IGNORE_INDEX
    assert logits.grad is not None
    assert torch.count_nonzero(logits.grad[ignored]) == 0
    assert (logits.grad[~ignored].abs().sum(-1) > 0.1).all()
    changed = torch.where(ignored.unsqueeze(-1), logits.detach() * 100, logits.detach())
    assert torch.equal(token_cross_entropy(changed, labels_BT)[0], token_cross_entropy(logits, labels_BT)[0])


def test_a_batch_without_any_token_costs_nothing():
    total, tokens = token_cross_entropy(torch.randn(2, 3, 5), torch.full((2, 3), IGNORE_INDEX))
    assert (total.item(), tokens.item()) == (0.0, 0)


def test_half_precision_logits_are_summed_in_full(labels_BT):
    logits = torch.randn(3, 7, 250, generator=torch.Generator().manual_seed(4)).bfloat16()
    total, _ = token_cross_entropy(logits, labels_BT)
    assert total.dtype == torch.float32
    assert torch.equal(total, token_cross_entropy(logits.float(), labels_BT)[0])
