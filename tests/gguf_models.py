"""Tiny models as GGUF files, and the oracle: the expected output of transformers.

The package gguf writes the file in the layout of llama.cpp's converter. The oracle is the same transformers model with
its weights replaced one by one by the values that the package gguf dequantizes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from gguf.quants import dequantize, quantize
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from llm2slm.data.tokenization.tokenizer import train_tokenizer
from llm2slm.testing import LLM_TEXTS

SHAPE: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.15,
}  # fmt: skip
EXTRA: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": False, "head_dim": 16, "rms_norm_eps": 1e-5},
    "qwen2": {"tie_word_embeddings": True, "rms_norm_eps": 1e-6, "sliding_window": None},
    "lfm2": {"layer_types": ["conv", "full_attention", "conv", "full_attention"], "block_auto_adjust_ff_dim": False,
             "conv_L_cache": 3},
}  # fmt: skip
ARCHITECTURES = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2, "lfm2": gguf.MODEL_ARCH.LFM2}
TEMPLATE = "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }}{% endfor %} answer:"


def gguf_vocabulary() -> PreTrainedTokenizerFast:
    """The byte-level tokenizer whose vocabulary and merges are written into the files."""
    return train_tokenizer(LLM_TEXTS, vocab_size=300)


def write_gguf(
    path: Path, architecture: str = "llama", kind: str = "Q8_0", seed: int = 0, *, vocabulary: bool = True
) -> PreTrainedModel:
    """Writes a tiny model with random weights and its tokenizer; returns the oracle, in eval mode.

    Args:
        kind: of the matrices: F32, F16, BF16, Q8_0, Q4_0, ...; biases and norms are F32.
        vocabulary: write the tokenizer too.
    """
    tokenizer = gguf_vocabulary()
    config = CONFIG_MAPPING[architecture](
        **SHAPE | EXTRA[architecture], vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        oracle = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config).eval()
        for name, parameter in oracle.named_parameters():  # norms and biases too, to make errors in them visible
            if parameter.ndim == 1:
                parameter.data += 0.3 * torch.randn(parameter.shape) * (1 if "norm" in name else 0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, architecture)
    _write_settings(writer, config)
    if vocabulary:
        _write_vocabulary(writer, tokenizer)
    _write_weights(writer, oracle, architecture, Kind[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return oracle


def _write_settings(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if config.model_type == "lfm2":
        writer.add_head_count_kv([2 if kind == "full_attention" else 0 for kind in config.layer_types])
        writer.add_layer_norm_rms_eps(config.norm_eps)
        writer.add_shortconv_l_cache(config.conv_L_cache)
    else:
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)


def _write_vocabulary(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerFast) -> None:
    import json

    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    pieces = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    special = set(tokenizer.all_special_tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(pieces)
    writer.add_token_types([3 if piece in special else 1 for piece in pieces])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]])
    writer.add_bos_token_id(tokenizer.eos_token_id)  # transformers 5.17 requires one
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(TEMPLATE)


def _write_weights(writer: gguf.GGUFWriter, oracle: PreTrainedModel, architecture: str, kind: Kind) -> None:
    names = gguf.get_tensor_name_map(ARCHITECTURES[architecture], oracle.config.num_hidden_layers)
    seen: set[int] = set()
    for name, weight in oracle.state_dict(keep_vars=True).items():
        if id(weight) in seen:  # tied
            continue
        seen.add(id(weight))
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert stored is not None, name
        values = weight.detach().numpy().astype(np.float32)
        if "conv.conv" in name:
            values = values.squeeze(1)
        own = kind if values.ndim == 2 and "conv.conv" not in name else Kind.F32
        data = quantize(values, own)
        with torch.no_grad():
            weight.copy_(torch.from_numpy(dequantize(data, own)).reshape(weight.shape))
        heads = {"q_proj": oracle.config.num_attention_heads, "k_proj": oracle.config.num_key_value_heads}
        part = name.split(".")[-2]
        if architecture == "llama" and part in heads:  # llama.cpp rotates adjacent rows, transformers halves
            data = quantize(values[neighbours(len(values), heads[part])], own)
        writer.add_tensor(stored, data, raw_dtype=own)


def neighbours(rows: int, heads: int) -> np.ndarray:
    """Order of rows in which the two halves of a head alternate."""
    width = rows // heads
    pairs = [i // 2 + (i % 2) * (width // 2) for i in range(width)]
    return np.array([head * width + i for head in range(heads) for i in pairs])


def hidden_states(oracle: PreTrainedModel, rows: list[list[int]], layer: int) -> list[Tensor]:
    """The hidden states of transformers' complete model after a block, row by row."""
    with torch.no_grad():
        return [oracle(torch.tensor([row]), output_hidden_states=True).hidden_states[layer][0] for row in rows]
