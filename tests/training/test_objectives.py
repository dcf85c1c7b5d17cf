"""The loss against that of transformers and a hand-written log-softmax, and the positions that it ignores."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM
from transformers.trainer_pt_utils import LabelSmoother

from llm2slm.testing import write_tiny_gpt2, write_tiny_t5
from llm2slm.training import objectives
from llm2slm.training.objectives import token_cross_entropy, token_divergence
from llm2slm.types import IGNORE_INDEX


@pytest.fixture
def labels_BT() -> torch.Tensor:
    labels = torch.randint(2, 250, (3, 7), generator=torch.Generator().manual_seed(1))
    labels[1, 4:] = IGNORE_INDEX
    labels[2, 1:] = IGNORE_INDEX
    return labels


def test_the_loss_equals_that_of_transformers_for_a_t5(tmp_path, labels_BT):
    model = AutoModelForSeq2SeqLM.from_pretrained(write_tiny_t5(tmp_path)).eval()
    out = model(input_ids=torch.arange(15).reshape(3, 5), labels=labels_BT)
    total, tokens = token_cross_entropy(out.logits, labels_BT)
    assert tokens == 7 + 4 + 1
    torch.testing.assert_close(total / tokens, out.loss, rtol=1e-6, atol=1e-6)


def test_the_loss_equals_that_of_transformers_for_a_gpt2(tmp_path, labels_BT):
    model = AutoModelForCausalLM.from_pretrained(write_tiny_gpt2(tmp_path)).eval()
    prompt = torch.arange(9).reshape(3, 3)
    ids = torch.cat([prompt, labels_BT.clamp(min=0)], 1)
    out = model(input_ids=ids, labels=torch.cat([torch.full_like(prompt, IGNORE_INDEX), labels_BT], 1))
    total, tokens = token_cross_entropy(out.logits[:, 2:-1], labels_BT)  # transformers shifts labels itself
    torch.testing.assert_close(total / tokens, out.loss, rtol=1e-6, atol=1e-6)


def test_label_smoothing_equals_that_of_transformers(labels_BT):
    logits = torch.randn(3, 7, 250, generator=torch.Generator().manual_seed(2))
    total, tokens = token_cross_entropy(logits, labels_BT, label_smoothing=0.1)
    expected = LabelSmoother(0.1, IGNORE_INDEX)({"logits": logits}, labels_BT.clone())
    torch.testing.assert_close(total / tokens, expected, rtol=1e-6, atol=1e-6)


def test_the_loss_worked_out_by_hand():
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


def test_a_batch_without_tokens_has_loss_zero():
    total, tokens = token_cross_entropy(torch.randn(2, 3, 5), torch.full((2, 3), IGNORE_INDEX))
    assert (total.item(), tokens.item()) == (0.0, 0)


def test_half_precision_logits_are_summed_in_float32(labels_BT):
    logits = torch.randn(3, 7, 250, generator=torch.Generator().manual_seed(4)).bfloat16()
    total, _ = token_cross_entropy(logits, labels_BT)
    assert total.dtype == torch.float32
    assert torch.equal(total, token_cross_entropy(logits.float(), labels_BT)[0])


# Divergence from a teacher


def drawn(seed, *shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 3


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("at_once", [1, 7, 15, 1000])
def test_divergence_and_its_gradient_equal_those_of_kl_div(labels_BT, monkeypatch, temperature, at_once):
    """Also with padded embedding rows, different ones on both sides, and for every chunk size."""
    monkeypatch.setattr(objectives, "AT_ONCE", at_once)
    student, teacher = drawn(1, 3, 7, 250).requires_grad_(), drawn(2, 3, 7, 261)
    total = token_divergence(student, teacher, labels_BT, temperature, tokens=240)
    (total * 1.5).backward()
    own = student.detach().clone().requires_grad_()
    real = labels_BT != IGNORE_INDEX
    soft = [F.log_softmax(side[real][:, :240] / temperature, dim=-1) for side in (own, teacher)]
    wanted = F.kl_div(*soft, log_target=True, reduction="sum") * temperature**2
    (wanted * 1.5).backward()
    torch.testing.assert_close(total, wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(student.grad, own.grad, rtol=1e-10, atol=1e-12)
    assert total > 1
    assert not student.grad[..., 240:].any()
    assert not student.grad[~real].any()


def test_divergence_worked_out_by_hand():
    """KL((3/4, 1/4) || (1/2, 1/2)) = ln 2 - H(1/4) at T = 1; at T = 2 the teacher is (sqrt 3, 1) / (sqrt 3 + 1)."""
    student, labels = torch.zeros(1, 2, 3), torch.tensor([[0, IGNORE_INDEX]])
    teacher = torch.tensor([[[math.log(3), 0.0, 50.0], [9.0, -9.0, 0.0]]])

    def kl(p):
        return math.log(2) + p * math.log(p) + (1 - p) * math.log(1 - p)

    assert token_divergence(student, teacher, labels, 1.0, 2).item() == pytest.approx(kl(0.75), rel=1e-6)
    softened = 4 * kl(math.sqrt(3) / (math.sqrt(3) + 1))
    assert token_divergence(student, teacher, labels, 2.0, 2).item() == pytest.approx(softened, rel=1e-6)


def test_vocabularies_of_different_length_are_compared_over_the_common_entries(labels_BT):
    student, teacher = drawn(1, 3, 7, 250), drawn(2, 3, 7, 240)
    wanted = token_divergence(student[..., :240], teacher, labels_BT)
    assert torch.equal(token_divergence(student, teacher, labels_BT), wanted)
    assert torch.equal(
        token_divergence(teacher, student, labels_BT), token_divergence(teacher, student[..., :240], labels_BT)
    )


def test_the_divergence_from_itself_is_zero(labels_BT):
    logits = drawn(3, 3, 7, 250, dtype=torch.float32).requires_grad_()
    total = token_divergence(logits, logits.detach().clone(), labels_BT, 1.7)
    total.backward()
    assert total.item() == 0
    assert not logits.grad.any()


def test_divergence_of_half_precision_is_summed_in_float32_and_ignores_padding(labels_BT):
    student, teacher = (drawn(seed, 3, 7, 250).bfloat16() for seed in (4, 5))
    total = token_divergence(student.requires_grad_(), teacher, labels_BT)
    assert total.dtype == torch.float32
    assert torch.equal(total, token_divergence(student.float(), teacher.float(), labels_BT))
    total.backward()
    assert student.grad.dtype == torch.bfloat16
    ignored = (labels_BT == IGNORE_INDEX).unsqueeze(-1)
    changed = torch.where(ignored, torch.full_like(teacher, float("nan")), teacher)
    assert torch.equal(token_divergence(student, changed, labels_BT), total)
    assert token_divergence(student, teacher, torch.full_like(labels_BT, IGNORE_INDEX)).item() == 0
