"""Tiny models of every family of the cost model, and torch's count of the FLOPs of what they compute."""

from collections.abc import Callable

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

P, T = 7, 6
SPECIAL = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2, "attn_implementation": "eager"}
BART = {
    "vocab_size": 53, "d_model": 24, "encoder_layers": 2, "encoder_attention_heads": 3, "encoder_ffn_dim": 40,
    "decoder_layers": 3, "decoder_attention_heads": 4, "decoder_ffn_dim": 44, "max_position_embeddings": 64,
    "decoder_start_token_id": 0, "forced_eos_token_id": None,
}  # fmt: skip
T5 = {"vocab_size": 53, "d_model": 24, "d_kv": 5, "num_heads": 3, "d_ff": 40, "num_layers": 2, "num_decoder_layers": 3}
LLAMA = {
    "vocab_size": 61, "hidden_size": 24, "intermediate_size": 44, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 10, "max_position_embeddings": 64,
}  # fmt: skip
BERT = {
    "vocab_size": 61, "hidden_size": 24, "intermediate_size": 44, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 64,
}  # fmt: skip
GPT2 = {"vocab_size": 61, "n_embd": 24, "n_layer": 3, "n_head": 3, "n_positions": 64}
OPT = {
    "vocab_size": 61, "hidden_size": 24, "ffn_dim": 50, "num_hidden_layers": 3, "num_attention_heads": 4,
    "word_embed_proj_dim": 24, "max_position_embeddings": 64,
}  # fmt: skip
HALF = {**LLAMA, "vocab_size": 53}


def config(model_type: str, values: dict, **changes):
    return CONFIG_MAPPING[model_type](**SPECIAL | values | changes)


ENCODER_DECODERS = {
    **{name: config(name, T5) for name in ("t5", "mt5", "umt5")},
    "t5 gated": config("t5", T5, num_layers=3, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    **{name: config(name, BART) for name in ("bart", "mbart", "pegasus")},
    "t5gemma": config(
        "t5gemma", {"vocab_size": 53},
        encoder=HALF | {"num_hidden_layers": 2}, decoder=HALF | {"hidden_size": 32, "intermediate_size": 36},
    ),
}  # fmt: skip
DECODERS = {
    "gpt2": config("gpt2", GPT2),
    "gpt2 inner": config("gpt2", GPT2, n_inner=50),
    "gpt_neox": config("gpt_neox", BERT),
    "opt": config("opt", OPT),
    "opt narrow": config("opt", OPT, word_embed_proj_dim=12),  # as OPT-350m: matrices around its blocks
    **{
        name: config(name, LLAMA)
        for name in ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "smollm3")
    },
    "qwen2 without head_dim": config("qwen2", {k: v for k, v in LLAMA.items() if k != "head_dim"}),
}
ENCODERS = {
    "bert": config("bert", BERT),
    "modernbert": config("modernbert", BERT, cls_token_id=1, sep_token_id=1),
}
WRITERS = ENCODER_DECODERS | DECODERS
READERS = WRITERS | ENCODERS
T5_GATED, GPT2_CROSS = ENCODER_DECODERS["t5 gated"], config("gpt2", GPT2, add_cross_attention=True)


def build(config, auto=None):
    torch.manual_seed(0)
    auto = auto or (AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM)
    return auto.from_config(config).eval()


def counted(call: Callable[[], object]) -> int:
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()
