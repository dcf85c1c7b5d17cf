"""Optional cross-attention layers of decoder-only models, found by interface: no list of model families."""

from __future__ import annotations

from copy import deepcopy
from inspect import signature

import torch
from transformers import PreTrainedConfig, PreTrainedModel

CROSS_ATTENTION = ("crossattention.", "ln_cross_attn.")
"""Parts of the tensor names of a decoder-only model's optional cross-attention layers."""


def can_add_cross_attention(kind: type[PreTrainedModel], config: PreTrainedConfig) -> bool:
    """Whether a decoder-only model class has optional cross-attention: the config key `add_cross_attention`, which adds
    the tensors `CROSS_ATTENTION`, and the argument `encoder_hidden_states`."""
    if config.is_encoder_decoder or not hasattr(config, "add_cross_attention"):
        return False
    if "encoder_hidden_states" not in signature(kind.forward).parameters:
        return False
    changed = deepcopy(config)
    changed.add_cross_attention = True
    try:
        with torch.device("meta"):
            before, after = (set(kind._from_config(each).state_dict()) for each in (deepcopy(config), changed))
    except (ValueError, NotImplementedError):  # BERT without is_decoder; GPT-BigCode with multi_query
        return False
    return bool(after - before) and all(any(part in name for part in CROSS_ATTENTION) for name in after - before)
