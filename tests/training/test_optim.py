"""Parameter groups by name, their rates, and the schedule at steps calculated by hand."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_runs import build, tiny_run

from llm2slm.config import OptimConfig
from llm2slm.training.optim import build_optimizer, parameter_groups, schedule_factor
from llm2slm.types import Init, UserError

T5_BLOCKS = {"encoder": (2, ("SelfAttention",)), "decoder": (3, ("SelfAttention", "EncDecAttention"))}


def names(model, cfg):
    """Group -> names of its parameters."""
    by_id = {id(p): name for name, p in model.named_parameters()}
    return {group["name"]: {by_id[id(p)] for p in group["params"]} for group in parameter_groups(model, cfg)}


def t5_names(sides):
    """The parameters of a T5 of the test kit, listed by its architecture: matrices, and the others."""
    matrices, rest = set(), {"slm.shared.weight"}
    for side in sides:
        layers, attentions = T5_BLOCKS[side]
        for layer in range(layers):
            for i, attention in enumerate(attentions):
                base = f"slm.{side}.block.{layer}.layer.{i}"
                matrices |= {f"{base}.{attention}.{part}.weight" for part in "qkvo"}
                rest.add(f"{base}.layer_norm.weight")
            base = f"slm.{side}.block.{layer}.layer.{len(attentions)}"
            matrices |= {f"{base}.DenseReluDense.{part}.weight" for part in ("wi", "wo")}
            rest.add(f"{base}.layer_norm.weight")
        rest.add(f"slm.{side}.final_layer_norm.weight")
        rest.add(f"slm.{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight")  # an embedding
    return matrices, rest


def projector_names(model):
    found = {name: p.ndim for name, p in model.named_parameters() if name.startswith("projector.")}
    assert sorted(found.values())[-2:] == [2, 2]  # two linear layers
    return {n for n, d in found.items() if d == 2}, {n for n, d in found.items() if d < 2}


@pytest.mark.parametrize(("mode", "sides"), [("add", ("encoder", "decoder")), ("memory", ("decoder",))])
def test_groups_of_a_t5_hybrid_contain_exactly_its_parameters(tmp_path, mode, sides):
    model, _ = build(tiny_run(tmp_path, mode=mode))
    matrices, rest = t5_names(sides)
    linear, others = projector_names(model)
    expected = {"projector": linear, "projector_no_decay": others, "slm": matrices, "slm_no_decay": rest}
    assert names(model, OptimConfig()) == expected
    assert set().union(*expected.values()) == model.trainable_names()


def test_groups_of_a_gpt2_hybrid_contain_exactly_its_parameters(tmp_path):
    model, _ = build(tiny_run(tmp_path, slm="gpt2"))
    linear, others = projector_names(model)
    matrices, rest = set(), {"slm.transformer.wte.weight", "slm.transformer.wpe.weight"}
    for part in ("weight", "bias"):
        rest.add(f"slm.transformer.ln_f.{part}")
        for layer in range(4):
            block = f"slm.transformer.h.{layer}"
            rest |= {f"{block}.ln_1.{part}", f"{block}.ln_2.{part}"}
            target = matrices if part == "weight" else rest
            target |= {f"{block}.{m}.{part}" for m in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")}
    expected = {"projector": linear, "projector_no_decay": others, "slm": matrices, "slm_no_decay": rest}
    assert names(model, OptimConfig()) == expected


@pytest.mark.parametrize("kind", ["slm", "llm"])
def test_a_system_alone_has_no_projector_group(tmp_path, kind):
    model, _ = build(tiny_run(tmp_path, kind=kind, mode="none"))
    matrices, rest = t5_names(("encoder", "decoder"))
    assert names(model, OptimConfig()) == {"slm": matrices, "slm_no_decay": rest}


def test_rates_and_decay_of_each_group_are_set(tmp_path):
    model, _ = build(tiny_run(tmp_path))
    cfg = OptimConfig(lr=0.3, projector_lr=0.7, weight_decay=0.05, betas=(0.8, 0.9))
    groups = {g["name"]: (g["lr"], g["weight_decay"], g["betas"]) for g in build_optimizer(model, cfg).param_groups}
    assert groups == {
        "projector": (0.7, 0.05, (0.8, 0.9)),
        "projector_no_decay": (0.7, 0.0, (0.8, 0.9)),
        "slm": (0.3, 0.05, (0.8, 0.9)),
        "slm_no_decay": (0.3, 0.0, (0.8, 0.9)),
    }
    same = build_optimizer(model, OptimConfig(lr=0.3)).param_groups
    assert {g["lr"] for g in same} == {0.3}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_with_a_separate_rate_are_a_group(tmp_path, optimizer, tied):
    config = tiny_run(tmp_path, slm="gpt2", mode="memory")
    config.model.slm.config, config.model.slm.init = {"tie_word_embeddings": tied}, Init.random
    model, _ = build(config)
    cfg = OptimConfig(name=optimizer, lr=0.3, projector_lr=0.7, embedding_lr=0.9, weight_decay=0.05)
    groups = {group["name"]: group for group in build_optimizer(model, cfg).param_groups}
    expected = {"slm.transformer.wte.weight", "slm.transformer.wpe.weight"}
    expected |= set() if tied else {"slm.lm_head.weight"}
    assert names(model, cfg)["slm_embeddings"] == expected
    embeddings = groups.pop("slm_embeddings")
    assert (embeddings["lr"], embeddings["weight_decay"], embeddings["muon"]) == (0.9, 0.0, False)
    assert {name: group["lr"] for name, group in groups.items()} == {
        "projector": 0.7, "projector_no_decay": 0.7, "slm": 0.3, "slm_no_decay": 0.3,
    }  # fmt: skip
    assert set().union(*names(model, cfg).values()) == model.trainable_names()


def test_decay_shrinks_matrices_only(tmp_path):
    """One step of AdamW without a gradient: weight <- weight * (1 - lr * decay), or unchanged."""
    model, _ = build(tiny_run(tmp_path))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = build_optimizer(model, OptimConfig(lr=0.1, weight_decay=0.5))
    for p in model.parameters():
        p.grad = torch.zeros_like(p) if p.requires_grad else None
    optimizer.step()
    matrices, _ = t5_names(("encoder", "decoder"))
    shrunk = matrices | projector_names(model)[0]
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), before[name] * (0.95 if name in shrunk else 1.0), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("cosine", {4: 1.0, 6: 0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2, 8: 0.55, 12: 0.1, 20: 0.1}),
        ("linear", {4: 1.0, 6: 0.775, 8: 0.55, 10: 0.325, 12: 0.1, 20: 0.1}),
        ("constant", {4: 1.0, 8: 1.0, 12: 1.0}),
    ],
)
def test_the_schedule_worked_out_by_hand(schedule, expected):
    factor = schedule_factor(OptimConfig(warmup_steps=4, schedule=schedule, final_lr=0.1), max_steps=12)
    assert [factor(step) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    for step, value in expected.items():
        assert factor(step) == pytest.approx(value, abs=1e-12), step


def test_without_warm_up_the_rate_starts_at_the_peak():
    assert schedule_factor(OptimConfig(warmup_steps=0, schedule="linear"), max_steps=4)(0) == 1.0


def test_an_unknown_schedule_is_reported_on_one_line():
    with pytest.raises(UserError, match=r"optim\.schedule=cosin: expected one of cosine, linear, constant"):
        schedule_factor(OptimConfig(schedule="cosin"), 10)


def test_an_unknown_optimizer_is_reported_on_one_line(tmp_path):
    model, _ = build(tiny_run(tmp_path))
    with pytest.raises(UserError, match=r"optim\.name=adam: expected one of adamw, muon"):
        build_optimizer(model, OptimConfig(name="adam"))
