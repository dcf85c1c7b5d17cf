"""Tiny models of every family that transformers builds from one or two stacks of blocks, with six blocks each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from llm2slm.testing import ARCHITECTURES

DEPTH = 6
SIDED = {"encoder_layers": 4, "decoder_layers": DEPTH}
T5_SIDED = {"num_layers": 4, "num_decoder_layers": DEPTH}
LLAMA = ARCHITECTURES["llama"][1]
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "mistral": ("mistral", LLAMA | {"sliding_window": 5}),
    "qwen3": ("qwen3", LLAMA),
    "qwen2_windows": ("qwen2", LLAMA | {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 3}),
    "smollm3": ("smollm3", LLAMA | {"no_rope_layers": [1, 0, 1, 1, 0, 1]}),
    "cohere2": ("cohere2", LLAMA | {"sliding_window": 4, "layer_types": 3 * ["sliding_attention", "full_attention"]}),
    "granite": ("granite", LLAMA),
    "phi3": ("phi3", LLAMA),
    "gpt_neo": ("gpt_neo", {"hidden_size": 16, "num_layers": DEPTH, "num_heads": 2, "window_size": 3,
                            "attention_types": [[["global", "local", "local"], 2]], "initializer_range": 0.3,
                            "max_position_embeddings": 64}),
    "gptj": ("gptj", {"n_embd": 16, "n_layer": DEPTH, "n_head": 2, "rotary_dim": 4, "n_positions": 64}),
    "bloom": ("bloom", {"hidden_size": 16, "n_layer": DEPTH, "n_head": 2, "initializer_range": 0.3}),
    "falcon": ("falcon", {"hidden_size": 16, "num_hidden_layers": DEPTH, "num_attention_heads": 2, "bos_token_id": 0}),
    "qwen3_moe": ("qwen3_moe", LLAMA | {"mlp_only_layers": [1, 4], "num_experts": 2, "num_experts_per_tok": 1,
                                        "moe_intermediate_size": 8}),
    "deepseek_v3": ("deepseek_v3", {"hidden_size": 16, "intermediate_size": 16, "moe_intermediate_size": 8,
                                    "num_attention_heads": 2, "num_key_value_heads": 2, "kv_lora_rank": 8,
                                    "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8,
                                    "n_routed_experts": 4, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 1,
                                    "first_k_dense_replace": 2, "initializer_range": 0.3}),
    "marian": ("marian", ARCHITECTURES["bart"][1] | {"scale_embedding": True}),
    "m2m_100": ("m2m_100", ARCHITECTURES["bart"][1]),
    "longt5": ("longt5", ARCHITECTURES["t5"][1] | {"local_radius": 4}),
}  # fmt: skip
"""Families in addition to those of the test kit, and settings that differ between blocks."""
WINDOWS = {"sliding_window": 4, "layer_types": 2 * ["sliding_attention", "full_attention", "sliding_attention"]}
CHANGES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_layer": DEPTH},
    "gemma2": WINDOWS,
    "gemma3": WINDOWS,
    **dict.fromkeys(("bart", "mbart", "pegasus", "marian", "m2m_100"), SIDED),
    **dict.fromkeys(("t5", "flan", "mt5", "umt5", "longt5"), T5_SIDED),
}
ONE_STACK = [
    "gpt2", "pythia", "llama", "qwen2", "gemma2", "gemma3", "opt", "mistral", "qwen3", "qwen2_windows", "smollm3",
    "cohere2", "granite", "phi3", "gpt_neo", "gptj", "bloom", "falcon", "qwen3_moe", "deepseek_v3",
]  # fmt: skip
TWO_STACKS = [
    "t5", "flan", "mt5", "umt5", "longt5", "bart", "mbart", "pegasus", "marian", "m2m_100", "t5gemma",
]  # fmt: skip


def write(family: str, folder: Path, **more: Any) -> Path:
    """A model of a family with random weights, without a tokenizer."""
    if family in OTHERS:
        model_type, values = OTHERS[family]
    else:
        model_type, values, dropouts = ARCHITECTURES[family]
        values = values | dict.fromkeys(dropouts, 0.0)
    tokens = {"vocab_size": 40, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    own = tokens | values
    if "num_hidden_layers" in values or family == "deepseek_v3":
        own |= {"num_hidden_layers": DEPTH}
    own |= CHANGES.get(family, {}) | more
    if model_type == "t5gemma":
        kinds = ["sliding_attention", "full_attention"]
        sizes = {"encoder": {"num_hidden_layers": 4, "layer_types": 2 * kinds}, "decoder": {"layer_types": 3 * kinds}}
        half = own | {"cross_attention_hidden_size": own["hidden_size"], "sliding_window": 4}
        own = tokens | {name: half | size for name, size in sizes.items()}
    if model_type in ("t5", "mt5", "umt5", "longt5"):
        own["decoder_start_token_id"] = 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        config = CONFIG_MAPPING[model_type](**own)
        auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        model = auto.from_config(config)
        for parameter in model.parameters():  # so large that each block, norm and bias affects the logits
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder
