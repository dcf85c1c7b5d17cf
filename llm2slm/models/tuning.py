"""Which parameters of the generating model are trained: all, none, some, or added ones.

Added parameters are peft's: low-rank adapters in the layers, or virtual tokens in the input (`soft_prompts`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from transformers import PreTrainedModel

from llm2slm.models.loading.cross_attention import CROSS_ATTENTION
from llm2slm.models.soft_prompts import NAME, PREFIX, PROMPT, SoftPrompts, add_soft_prompts
from llm2slm.types import UserError

FULL, NONE, LORA = "full", "none", "lora"
ADDED = (LORA, PROMPT, PREFIX)
WORDS = ", ".join((FULL, NONE, *ADDED))


def choose_trainable(slm: PreTrainedModel, tune: str, peft: Mapping[str, Any], key: str = "model.slm") -> None:
    """Marks, in place, the parameters that training may change.

    Cross-attention layers that were added for conditioning `memory` are always among them: their weights are random.

    Args:
        tune: full, none, lora (Hu et al. 2021, arXiv 2106.09685), prompt or prefix (see `soft_prompts`), or a regular
            expression that is searched for in the names of parameters.
        peft: arguments of peft's config class for `tune`: LoraConfig, PromptTuningConfig, PrefixTuningConfig.
        key: configuration key of the model, for error messages.

    Raises:
        UserError: no parameter's name matches, or peft is missing or refuses its arguments.
    """
    if peft and tune not in ADDED:
        raise UserError(f"{key}.peft is for {key}.tune={', '.join(ADDED[:-1])} or {ADDED[-1]}; it is {tune}")
    if tune == FULL:
        return
    if tune in ADDED:
        _freeze(slm)
        if tune == LORA:
            _add_adapters(slm, peft, key)
        else:
            add_soft_prompts(slm, tune, peft, key)
        return
    try:
        pattern = None if tune == NONE else re.compile(tune)
    except re.error as error:
        raise UserError(f"{key}.tune={tune}: no regular expression ({error}); or give one of {WORDS}") from None
    matched = [name for name, _ in slm.named_parameters() if pattern is not None and pattern.search(name)]
    if pattern is not None and not matched:
        examples = [name for name, _ in slm.named_parameters()][:3]
        raise UserError(
            f"{key}.tune={tune}: none of {WORDS}, and no parameter has such a name; they are like "
            + ", ".join(examples)
        )
    for name, parameter in slm.named_parameters():
        parameter.requires_grad_(name in matched or any(new in name for new in CROSS_ATTENTION))


def _freeze(slm: PreTrainedModel) -> None:
    """Freezes all parameters except those of added cross-attention layers."""
    for name, parameter in slm.named_parameters():
        parameter.requires_grad_(any(new in name for new in CROSS_ATTENTION))


def restore_soft_prompts(slm: PreTrainedModel, record: Mapping[str, Any], name: str) -> None:
    """Adds the virtual tokens of a saved model, without their values, in place; they are the trained parameters.

    Args:
        record: `SoftPrompts.record`. name: of the saved model, for error messages.

    Raises:
        UserError: peft is missing.
    """
    values = dict(record)
    _freeze(slm)
    try:
        setattr(slm, NAME, SoftPrompts(values.pop("tune"), values, None))
    except ImportError:
        raise UserError(f"{name}: its virtual tokens (tune={record['tune']}) need peft: pip install peft") from None


def _add_adapters(slm: PreTrainedModel, peft: Mapping[str, Any], key: str) -> None:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise UserError(f"{key}.tune=lora needs peft: pip install peft") from None
    try:
        inject_adapter_in_model(LoraConfig(**peft), slm)
    except (TypeError, ValueError) as error:
        raise UserError(f"{key}.peft: {str(error).splitlines()[0]}") from None


def merged(slm: PreTrainedModel) -> PreTrainedModel:
    """The model without adapters: a copy with the adapters merged into its weights, or itself if it has none."""
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
