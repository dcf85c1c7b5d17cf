"""A pretrained SLM is unchanged at step 0: where z can be zero, the guided logits equal those of the SLM."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sampling import representatives

from llm2slm.commands.loaded_models import recorded_projector
from llm2slm.config import LanguageModelConfig, ModelConfig, OptimConfig, ProjectorConfig, upgraded
from llm2slm.models.build import build_model
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.testing import labelled, tiny_model_config
from llm2slm.training.objectives import token_cross_entropy
from llm2slm.training.optim import build_optimizer
from llm2slm.types import Init, Start, SystemKind, Tokenizers, UserError


def config(
    root: Path, slm: str = "gpt2", mode: str = "add", tokenizers: str = "shared", **projector: Any
) -> ModelConfig:
    """The configuration of a pretrained SLM with the defaults resolved."""
    made = tiny_model_config(root, "t5", slm, mode, Tokenizers(tokenizers))
    return replace(made, projector=ProjectorConfig(**projector))


def built(cfg: ModelConfig) -> LLM2SLM:
    torch.manual_seed(3)
    return build_model(cfg).eval()


STARTS_AS_ITSELF = [
    (slm, mode, tokenizers)
    for slm in ("t5", "gpt2", "llama", "pegasus")
    for mode in ("add", "cross_attention")
    for tokenizers in ("shared", "offsets")
    if mode == "add" or slm in ("gpt2", "llama")
]


@pytest.mark.parametrize(
    ("slm", "mode", "tokenizers"),
    representatives(STARTS_AS_ITSELF, lambda case: case[2] == "offsets" and case[0] in ("t5", "gpt2")),
    ids="-".join,
)
def test_guided_logits_equal_those_of_the_slm(zoo: Path, slm: str, mode: str, tokenizers: str) -> None:
    guided = built(cfg := config(zoo, slm, mode, tokenizers))
    alone = built(replace(cfg, kind=SystemKind.slm))
    batch, own = labelled(guided, [0, 1, 2]), labelled(alone, [0, 1, 2])
    assert torch.equal(batch.slm_ids_BQ, own.slm_ids_BQ)
    with torch.no_grad():
        assert torch.equal(guided.logits(batch), alone.logits(own))
    arguments = {"max_new_tokens": 5, "min_new_tokens": 5}
    assert torch.equal(guided.generate(batch, **arguments), alone.generate(own, **arguments))


@pytest.mark.parametrize(
    ("mode", "tokenizers", "changes"),
    [
        ("replace", "shared", {}),
        ("prepend", "shared", {}),
        ("memory", "shared", {}),
        ("cross_attention", "shared", {}),
        ("add", "llm_tokens", {}),
        ("add", "shared", {"init": Init.random}),
    ],
)
def test_z_starts_at_random_where_zero_is_not_the_plain_slm(
    zoo: Path, mode: str, tokenizers: str, changes: Any
) -> None:
    cfg = config(zoo, "gpt2", mode, tokenizers)
    model = built(replace(cfg, slm=replace(cfg.slm, **changes)))
    record = model.config.projector or {}
    assert record["start"] == "random" and record["gate"] is False
    assert model.projector is not None and model.projector.layers[-1].weight.abs().min() > 0


def test_the_other_layers_are_drawn_as_with_a_random_start(zoo: Path) -> None:
    """Only the last layer is set to zero, after it was drawn."""
    zero, drawn = (built(config(zoo, "t5", "add", "shared", start=start)) for start in (Start.zero, Start.random))
    for (name, one), (_, other) in zip(zero.named_parameters(), drawn.named_parameters(), strict=True):
        last = name.startswith("projector.layers.3")
        assert torch.equal(one, torch.zeros_like(one) if last else other)
    assert not torch.equal(drawn.projector.layers[3].weight, torch.zeros(1))  # type: ignore[union-attr]


def test_the_last_layer_learns_at_the_first_step_and_the_previous_one_at_the_second(zoo: Path) -> None:
    model = built(config(zoo, start=Start.zero)).train()
    batch = labelled(model, [0, 1, 2])
    optimizer = build_optimizer(model, OptimConfig())
    projector = model.projector
    assert projector is not None
    first, last = projector.layers[1].weight, projector.layers[3].weight
    for step in (1, 2):
        optimizer.zero_grad()
        assert batch.labels_BT is not None
        loss, _ = token_cross_entropy(model.logits(batch), batch.labels_BT)
        loss.backward()
        assert last.grad is not None and last.grad.abs().sum() > 0
        assert first.grad is not None and (first.grad.abs().sum() > 0) == (step == 2)
        optimizer.step()


def test_the_gate_learns_at_the_first_step_and_the_layers_before_it_at_the_second(zoo: Path) -> None:
    model = built(config(zoo)).train()
    batch = labelled(model, [0, 1, 2])
    optimizer, projector = build_optimizer(model, OptimConfig()), model.projector
    assert projector is not None and projector.gate is not None and projector.gate.item() == 0
    for step in (1, 2):
        optimizer.zero_grad()
        assert batch.labels_BT is not None
        token_cross_entropy(model.logits(batch), batch.labels_BT)[0].backward()
        assert projector.gate.grad is not None and projector.gate.grad.abs() > 0
        behind = projector.layers[3].weight.grad
        assert behind is not None and (behind.abs().sum() > 0) == (step == 2)
        optimizer.step()


def test_z_changes_a_cross_attending_slm(zoo: Path) -> None:
    """With gates and z at zero no parameter would have a gradient."""
    model = built(config(zoo, "gpt2", "cross_attention"))
    batch = labelled(model, [0, 1, 2])
    assert batch.labels_BT is not None and model.crossing is not None
    token_cross_entropy(model.logits(batch), batch.labels_BT)[0].backward()
    assert all(layer.gate.grad.abs() > 0 for layer in model.crossing.layers)  # type: ignore[union-attr, operator]


def test_a_saved_model_records_its_start(zoo: Path, tmp_path: Path) -> None:
    model = built(config(zoo))
    model.projector.gate.data.fill_(0.7)  # type: ignore[union-attr]
    model.save_pretrained(tmp_path)
    again = LLM2SLM.from_pretrained(tmp_path)
    batch = labelled(model, [0, 1])
    with torch.no_grad():
        assert torch.equal(again.logits(batch), model.logits(batch))
    assert recorded_projector(again.config.projector or {}) == ProjectorConfig(gate=True, start=Start.random)


def test_records_of_earlier_versions_keep_their_meaning() -> None:
    old = {"hidden": None, "norm": True, "gate": False}
    assert recorded_projector(dict(old)) == ProjectorConfig(gate=False, start=Start.random)
    read = upgraded({"model": {"projector": dict(old)}, "optim": {"lr": 1e-4, "projector_lr": None}})
    assert read["model"]["projector"] == old | {"start": "random"}
    assert read["optim"] == {"lr": 1e-4, "projector_lr": 1e-4}
    new = {"model": {"projector": old | {"start": None}}, "optim": {"lr": 1e-4, "projector_lr": None}}
    assert upgraded(new)["optim"]["projector_lr"] is None and new["model"]["projector"]["start"] is None


@pytest.mark.parametrize(
    ("mode", "projector", "words"),
    [
        ("replace", {}, "leaves conditioning=replace nothing to read"),
        ("memory", {}, "leaves conditioning=memory nothing to read"),
        ("prepend", {}, "leaves conditioning=prepend nothing to read"),
        ("cross_attention", {}, "leaves conditioning=cross_attention nothing to read"),
        ("add", {"gate": True}, "neither gets a gradient"),
    ],
)
def test_zero_is_refused_where_nothing_could_be_learned(zoo: Path, mode: str, projector: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        built(config(zoo, "gpt2", mode, start=Start.zero, **projector))


@pytest.mark.parametrize("gate", [None, True])
def test_with_a_gate_the_layers_start_at_random(zoo: Path, gate: bool | None) -> None:
    """The gate sets z to zero already."""
    model = built(config(zoo, gate=gate))
    assert (model.config.projector or {})["start"] == "random"
    assert model.projector is not None and model.projector.layers[-1].weight.abs().min() > 0


def test_random_weights_of_a_new_slm_are_not_pretrained(build: Callable[..., LLM2SLM]) -> None:
    """As in the demo: an SLM that is trained from scratch is unchanged."""
    assert LanguageModelConfig(name="x", init=Init.random).start is Init.random
    assert (build("t5", "gpt2", "add").config.projector or {})["start"] == "random"
