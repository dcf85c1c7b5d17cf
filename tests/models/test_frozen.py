"""The LLM stays frozen under other tools: peft, transformers' Trainer, loops that enable all gradients."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftConfig, get_peft_model, inject_adapter_in_model
from sampling import representatives
from test_clients import TEXTS, arguments, collate, hybrid
from transformers import Seq2SeqTrainer

from llm2slm.models.build import build_model
from llm2slm.models.hybrid import LLM2SLM
from llm2slm.testing import labelled, tiny_model_config, tiny_rows
from llm2slm.types import SystemKind, UserError

OUT = r"encoder\..*"


def frozen(model: LLM2SLM) -> dict[str, torch.Tensor]:
    assert model.encoder is not None
    return {name: tensor.clone() for name, tensor in model.encoder.state_dict().items()}


def assert_as_before(model: LLM2SLM, before: dict[str, torch.Tensor]) -> None:
    after = frozen(model)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert not any(name.startswith("encoder.") for name in model.trainable_names())


ADAPTERS: dict[str, Callable[..., PeftConfig]] = {
    "all-linear": lambda **more: LoraConfig(target_modules="all-linear", **more),
    "names": lambda **more: LoraConfig(target_modules=["q", "v", "c_attn"], **more),
    "dora": lambda **more: LoraConfig(target_modules=["q", "c_attn"], use_dora=True, **more),
    "whole modules": lambda **more: LoraConfig(target_modules=r"slm\..*(q|c_attn)", modules_to_save=["0"], **more),
    "ia3": lambda **more: IA3Config(target_modules=["q", "c_attn"], feedforward_modules=[], **more),
}


@pytest.mark.parametrize("slm", representatives(["t5", "gpt2"], ["gpt2"]))
@pytest.mark.parametrize("adapters", ADAPTERS)
def test_peft_is_refused_if_it_would_train_the_llm(zoo: Path, slm: str, adapters: str) -> None:
    model = hybrid(zoo, slm)
    with pytest.raises(
        UserError, match=r"^the LLM is frozen, .* were added to it \(encoder\.body\..*exclude_modules=r'"
    ):
        get_peft_model(model, ADAPTERS[adapters]())
    with pytest.raises(UserError, match="the LLM is frozen"):  # if the caller ignores the error
        model.logits(labelled(model, [0, 1, 2]))


@pytest.mark.parametrize("slm", representatives(["t5", "gpt2"], ["gpt2"]))
def test_peft_trains_the_other_modules_with_the_arguments_in_the_message(zoo: Path, tmp_path: Path, slm: str) -> None:
    for config in (LoraConfig(target_modules="all-linear", exclude_modules=OUT), LoraConfig(target_modules=r"slm\..*")):
        if config.target_modules != "all-linear":
            config.target_modules = r"slm\..*(q|c_attn)"
        model = hybrid(zoo, slm)
        before = frozen(model)
        adapted = get_peft_model(model, config)
        names = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
        assert names and all("lora_" in name and ".encoder.body." not in name for name in names)
        trained = {name: p.clone() for name, p in adapted.named_parameters() if p.requires_grad}
        trainer = Seq2SeqTrainer(adapted, arguments(tmp_path), collate(model), tiny_rows())
        trainer.train()
        assert any(not torch.equal(p, trained[n]) for n, p in adapted.named_parameters() if n in trained)
        assert_as_before(model, before)


def test_adapters_injected_without_a_wrapper_are_refused(zoo: Path) -> None:
    with pytest.raises(UserError, match="the LLM is frozen"):
        inject_adapter_in_model(LoraConfig(target_modules="all-linear"), hybrid(zoo))
    with pytest.raises(UserError, match="the LLM is frozen"):
        hybrid(zoo).add_adapter(LoraConfig(target_modules="all-linear"))
    model = hybrid(zoo)
    assert model.encoder is not None
    inject_adapter_in_model(LoraConfig(target_modules=["q"]), model.encoder.body)  # bypasses the model's check
    with pytest.raises(UserError, match=r"\(encoder\.body\..*lora_A"):
        model.logits(labelled(model, [0, 1, 2]))


def test_a_system_without_an_llm_accepts_any_adapters(zoo: Path) -> None:
    model = build_model(tiny_model_config(zoo, slm="gpt2", kind=SystemKind.slm))
    adapted = get_peft_model(model, LoraConfig(target_modules="all-linear"))
    assert torch.isfinite(adapted.base_model.model.logits(labelled(model, [0, 1]))).all()


def require_all_gradients(model: LLM2SLM) -> None:
    for parameter in model.parameters():
        parameter.requires_grad = True


WAYS: dict[str, Callable[[LLM2SLM], Any]] = {
    "requires_grad_": lambda model: model.requires_grad_(True),
    "each parameter": require_all_gradients,
    "train": lambda model: model.train(),
    "train of the encoder": lambda model: model.encoder.train(True),
    "enable_input_require_grads": lambda model: model.enable_input_require_grads(),
}


@pytest.mark.parametrize("way", representatives(WAYS, ["requires_grad_", "enable_input_require_grads"]))
@pytest.mark.parametrize(("slm", "mode"), [("t5", "add"), ("gpt2", "cross_attention")])
def test_the_trainer_leaves_the_llm_unchanged_however_gradients_are_enabled(
    zoo: Path, tmp_path: Path, way: str, slm: str, mode: str
) -> None:
    model = hybrid(zoo, slm, mode)
    before, names = frozen(model), model.trainable_names()
    WAYS[way](model)
    trainer = Seq2SeqTrainer(model, arguments(tmp_path, weight_decay=0.5), collate(model), tiny_rows())
    trainer.train()
    assert_as_before(model, before)
    assert model.encoder is not None
    assert not any(module.training for module in model.encoder.modules())
    assert all(parameter.grad is None for parameter in model.encoder.parameters())
    assert model.trainable_names() == names
    assert len(model.generate_text(TEXTS, max_new_tokens=3)) == 3


def test_the_caller_controls_the_gradients_of_all_other_modules(zoo: Path) -> None:
    model = hybrid(zoo)
    assert model.requires_grad_(False) is model
    assert not model.trainable_names()
    model.requires_grad_(True)
    assert model.trainable_names() == {n for n, _ in model.named_parameters() if not n.startswith("encoder.")}
