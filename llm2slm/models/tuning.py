"""What training changes of the writer: all of it, nothing, some of its parameters, or low-rank adapters beside them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from transformers import PreTrainedModel

from llm2slm.models.pretrained import CROSS_ATTENTION
from llm2slm.types import UserError

FULL, NONE, LORA = "full", "none", "lora"


def choose_trainable(slm: PreTrainedModel, tune: str, lora: Mapping[str, Any], key: str = "model.slm") -> None:
    """Marks, in place, the parameters that training may change.

    Cross-attention layers that a model was given for conditioning `memory` are always among them: they are new.

    Args:
        tune: full, none, lora (Hu et al. 2021, arXiv 2106.09685, through peft), or a regular expression that is looked
            for in the names of parameters.
        lora: arguments of `peft.LoraConfig`.
        key: where both stand in the configuration, for a complaint.

    Raises:
        UserError: no parameter's name matches, or peft is missing or refuses its arguments.
    """
    if lora and tune != LORA:
        raise UserError(f"{key}.lora is for {key}.tune=lora; it is {tune}")
    if tune == FULL:
        return
    if tune == LORA:
        _add_adapters(slm, lora, key)
        return
    try:
        pattern = None if tune == NONE else re.compile(tune)
    except re.error as error:
        raise UserError(f"{key}.tune={tune}: no regular expression ({error}); or give full, none or lora") from None
    matched = [name for name, _ in slm.named_parameters() if pattern is not None and pattern.search(name)]
    if pattern is not None and not matched:
        examples = [name for name, _ in slm.named_parameters()][:3]
        raise UserError(
            f"{key}.tune={tune}: not full, none or lora, and no parameter has such a name; they are like "
            + ", ".join(examples)
        )
    for name, parameter in slm.named_parameters():
        parameter.requires_grad_(name in matched or any(new in name for new in CROSS_ATTENTION))


def _add_adapters(slm: PreTrainedModel, lora: Mapping[str, Any], key: str) -> None:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise UserError(f"{key}.tune=lora needs peft: pip install peft") from None
    try:
        inject_adapter_in_model(LoraConfig(**lora), slm)
    except (TypeError, ValueError) as error:
        raise UserError(f"{key}.lora: {str(error).splitlines()[0]}") from None
    for name, parameter in slm.named_parameters():
        if any(new in name for new in CROSS_ATTENTION):
            parameter.requires_grad_(True)


def merged(slm: PreTrainedModel) -> PreTrainedModel:
    """The writer as a plain model of its class: a copy with its adapters added in, or itself where it has none."""
    if not any("lora_" in name for name, _ in slm.named_parameters()):
        return slm
    from peft.tuners.lora import LoraLayer

    plain = deepcopy(slm)
    for name, module in list(plain.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            parent, _, child = name.rpartition(".")
            setattr(plain.get_submodule(parent), child, module.get_base_layer())
    return plain
