"""Muon against torch's Muon and the singular value decomposition, and its AdamW part against torch's AdamW."""

from __future__ import annotations

import pytest
import torch
from tiny_runs import build, tiny_run
from torch import nn

from llm2slm.config import OptimConfig
from llm2slm.training.muon import Muon, orthogonalize
from llm2slm.training.optim import build_optimizer, parameter_groups
from llm2slm.types import Init

SHAPES = [(16, 16), (16, 16), (8, 24), (24, 8), (16, 16), (5, 40)]


def drawn(seed, shapes=SHAPES):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


@pytest.mark.parametrize("shape", [(12, 12), (6, 30), (30, 6)])
def test_singular_vectors_are_kept_and_singular_values_approach_one(shape):
    matrix = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))
    result = orthogonalize(matrix)
    for before, after in zip(matrix, result, strict=True):
        u, _, vh = torch.linalg.svd(before, full_matrices=False)
        values = u.mT @ after @ vh.mT  # diagonal if and only if the singular vectors are kept
        assert (values - torch.diag(values.diagonal())).abs().max() < 1e-4
        assert values.diagonal().min() > 0.6
        assert values.diagonal().max() < 1.3


def test_matrices_are_updated_as_by_torchs_muon():
    """Its Newton-Schulz runs in bfloat16, hence the tolerance; a step in another direction differs by 100 %."""
    ours, theirs = [[nn.Parameter(p) for p in drawn(0)] for _ in range(2)]
    mine = Muon([{"params": ours, "lr": 0.1, "weight_decay": 0.2, "muon": True}])
    oracle = torch.optim.Muon(theirs, lr=0.1, weight_decay=0.2, adjust_lr_fn="match_rms_adamw")
    before = [p.detach().clone() for p in ours]
    for step in range(4):
        for a, b, grad in zip(ours, theirs, drawn(10 + step), strict=True):
            a.grad, b.grad = grad.clone(), grad.clone()
        mine.step()
        oracle.step()
    for a, b, start in zip(ours, theirs, before, strict=True):
        assert (a - b).norm() < 0.02 * (b - start).norm()


def test_other_parameters_are_updated_as_by_torchs_adamw():
    shapes = [(7,), (4, 5), (2, 3, 4)]
    ours, theirs = [[nn.Parameter(p) for p in drawn(0, shapes)] for _ in range(2)]
    mine = Muon([{"params": ours, "lr": 0.1, "weight_decay": 0.2}], betas=(0.8, 0.9))
    oracle = torch.optim.AdamW(theirs, lr=0.1, weight_decay=0.2, betas=(0.8, 0.9))
    for step in range(4):
        for a, b, grad in zip(ours, theirs, drawn(10 + step, shapes), strict=True):
            a.grad, b.grad = grad.clone(), grad.clone()
        mine.step()
        oracle.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_a_parameter_without_gradient_is_unchanged():
    still, moved = nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(4, 4))
    moved.grad = torch.eye(4)
    Muon([{"params": [still, moved], "weight_decay": 0.5, "muon": True}]).step()
    assert torch.equal(still, torch.ones(4, 4))
    assert not torch.equal(moved, torch.ones(4, 4))


def test_the_state_of_the_optimizer_is_resumed():
    def trained(split):
        parameters = [nn.Parameter(p) for p in drawn(0)]
        groups = [{"params": parameters[:4], "muon": True}, {"params": parameters[4:]}]
        optimizer = Muon(groups)
        for step in range(6):
            if step == split:
                state = optimizer.state_dict()
                optimizer = Muon([{**g, "lr": 9.0} for g in groups])
                optimizer.load_state_dict(state)
            for p, grad in zip(parameters, drawn(10 + step), strict=True):
                p.grad = grad
            optimizer.step()
        return parameters

    for a, b in zip(trained(None), trained(3), strict=True):
        assert torch.equal(a, b)


def test_a_vector_in_a_group_of_matrices_is_refused():
    with pytest.raises(ValueError, match="group slm: Muon is for matrices"):
        Muon([{"name": "slm", "params": [nn.Parameter(torch.ones(3))], "muon": True}])


@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_and_output_layer_are_not_hidden_matrices(tmp_path, tied):
    """AdamW updates embeddings and output layer under Muon, tied or not; under AdamW the output layer decays."""
    config = tiny_run(tmp_path, slm="gpt2")
    config.model.slm.config, config.model.slm.init = {"tie_word_embeddings": tied}, Init.random
    model, _ = build(config)
    assert tied == (model.slm.lm_head.weight is model.slm.transformer.wte.weight)
    by_id = {id(p): name for name, p in model.named_parameters()}
    for name, heads in (("muon", "slm_no_decay"), ("adamw", "slm")):
        groups = {
            g["name"]: {by_id[id(p)] for p in g["params"]} for g in parameter_groups(model, OptimConfig(name=name))
        }
        assert "slm.transformer.wte.weight" in groups["slm_no_decay"]
        assert ("slm.lm_head.weight" in groups[heads]) is not tied
    flags = {g["name"]: g["muon"] for g in build_optimizer(model, OptimConfig(name="muon")).param_groups}
    assert flags == {"projector": True, "projector_no_decay": False, "slm": True, "slm_no_decay": False}
