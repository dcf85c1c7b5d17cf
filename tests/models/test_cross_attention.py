"""Gated cross-attention against its formula and against the plain SLM."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from llm2slm.models.build import build_model
from llm2slm.models.conditioning.cross_attention import CrossAttentionBlocks, GatedCrossAttention
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.testing import labelled, tiny_model_config, tiny_rows
from llm2slm.types import Reps, UserError

B, Q, P, D, E = 2, 3, 5, 8, 6


def by_hand(layer: GatedCrossAttention, states: Tensor, z: Tensor) -> Tensor:
    """One row, no padding: softmax(q k / sqrt(d)) v, head by head."""
    normed = states / (states.square().mean(-1, keepdim=True) + torch.finfo(torch.float32).eps).sqrt()
    query, key, value = normed @ layer.query.weight.T, z @ layer.key.weight.T, z @ layer.value.weight.T
    size = D // layer.heads
    found = []
    for head in range(layer.heads):
        at = slice(head * size, (head + 1) * size)
        weights = (query[:, at] @ key[:, at].T / size**0.5).softmax(-1)
        found.append(weights @ value[:, at])
    return states + torch.tanh(layer.gate) * (torch.cat(found, -1) @ layer.out.weight.T)


def test_a_layer_equals_its_formula_and_ignores_padding() -> None:
    torch.manual_seed(0)
    layer = GatedCrossAttention(D, E, heads=2)
    layer.gate.data.fill_(0.7)
    states, z = torch.randn(B, Q, D), torch.randn(B, P, E)
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    found = layer(states, *layer.keys_values(z), mask)
    torch.testing.assert_close(found[0], by_hand(layer, states[0], z[0]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[1], by_hand(layer, states[1], z[1, 2:]), rtol=1e-5, atol=1e-5)


def crossed(build: Callable[..., LLM2SLM], slm: str = "gpt2", gate: float = 1.0) -> LLM2SLM:
    model = build("t5", slm, "cross_attention", "offsets")
    for layer in model.crossing.layers:
        layer.gate.data.fill_(gate)
    return model


def test_with_closed_gates_the_model_equals_the_plain_slm(build) -> None:
    model = crossed(build, gate=0.0)
    texts = [row["source"] for row in tiny_rows()]
    batch = model.collator.batch_of_texts(texts)
    guided = model.generate(batch, max_new_tokens=6, min_new_tokens=6)
    plain = model.slm.generate(
        input_ids=batch.slm_ids_BQ, attention_mask=batch.slm_mask_BQ, max_new_tokens=6, min_new_tokens=6,
        do_sample=False, eos_token_id=model.collator.eos_id, pad_token_id=model.collator.pad_id,
    )  # fmt: skip
    assert torch.equal(guided, plain[:, batch.slm_ids_BQ.shape[1] :])
    for layer in model.crossing.layers:
        layer.gate.data.fill_(1.0)
    assert not torch.equal(model.generate(batch, max_new_tokens=6, min_new_tokens=6), guided)


def test_closed_gates_have_a_gradient(build) -> None:
    model = crossed(build, gate=0.0)
    batch = model.collator(model.collator.encode(examples()))
    model.logits(batch).square().mean().backward()
    assert all(layer.gate.grad.abs() > 0 for layer in model.crossing.layers)


def examples() -> list[object]:
    from llm2slm.types import Example

    return [Example(i, r["source"], r["source"], r["target"]) for i, r in enumerate(tiny_rows())]


@pytest.mark.parametrize(("every", "layers"), [(1, 4), (2, 2), (3, 1), (4, 1)])
def test_every_kth_block_has_cross_attention(zoo, every, layers) -> None:
    cfg = tiny_model_config(zoo, "t5", "gpt2", "cross_attention")
    cfg.cross_every = every
    model = build_model(cfg)
    assert len(model.crossing.layers) == layers
    hooked = [bool(block._forward_pre_hooks) for block in model.slm.transformer.h]
    assert hooked == [(n + 1) % every == 0 for n in range(4)]


def test_a_step_larger_than_the_number_of_blocks_is_refused(zoo) -> None:
    cfg = tiny_model_config(zoo, "t5", "gpt2", "cross_attention")
    cfg.cross_every = 5
    with pytest.raises(UserError, match=r"model.cross_every=5: the SLM has 4 blocks; give 1 to 4"):
        build_model(cfg)


def test_an_encoder_decoder_is_refused_and_the_possible_conditionings_are_listed(zoo) -> None:
    with pytest.raises(UserError, match=r"cross_attention does not fit .*possible: add, memory, prepend, replace"):
        build_model(tiny_model_config(zoo, "t5", "t5", "cross_attention"))


def test_outside_of_a_call_the_slm_is_unchanged(build) -> None:
    model = crossed(build)
    ids = torch.tensor([[5, 9, 40]])
    before = model.slm(ids).logits
    model.generate_text(["the old dog"], max_new_tokens=3)
    with (
        pytest.raises(RuntimeError),
        model.crossing.attending(model.crossing.states(Reps(torch.zeros(1, 2, 16), torch.ones(1, 2)))),
    ):
        raise RuntimeError
    assert torch.equal(model.slm(ids).logits, before)


def test_an_slm_whose_blocks_cannot_be_identified_is_refused(build) -> None:
    slm = build("t5", "gpt2", "add").slm
    slm.transformer.twin = torch.nn.ModuleList([torch.nn.Identity() for _ in range(4)])
    with pytest.raises(UserError, match="the blocks of a gpt2 cannot be identified"):
        CrossAttentionBlocks(slm)


def test_cross_attention_of_a_bfloat16_slm_is_computed_in_float32(zoo) -> None:
    config = tiny_model_config(zoo, "t5", "gpt2", "cross_attention")
    config.slm.dtype = "bfloat16"
    torch.manual_seed(0)
    model = build_model(config).eval()
    exact = build_model(tiny_model_config(zoo, "t5", "gpt2", "cross_attention")).eval()
    exact.load_state_dict({name: tensor.float() for name, tensor in model.state_dict().items()})
    for one in (model, exact):
        for layer in one.crossing.layers:
            layer.gate.data.fill_(1.0)
    batch = labelled(model, [0, 1, 2])
    found, expected = model.logits(batch).float(), exact.logits(batch)
    assert (found - expected).abs().max() < 0.1 * expected.abs().max()
    plain = build_model(tiny_model_config(zoo, "t5", "gpt2")).eval()
    assert (expected - plain.logits(labelled(plain, [0, 1, 2]))).abs().max() > 0.1 * expected.abs().max()
    assert model.generate_text(["two dogs"], max_new_tokens=4, min_new_tokens=4)
