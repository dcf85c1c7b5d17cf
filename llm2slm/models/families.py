"""Matrix shapes of a model from its config alone, for every model family that the cost model knows. No torch.

Configs are plain mappings (`config.to_dict()` of a transformers config). To add a family: a row of `FAMILIES`, and a
tiny config in tests/evaluation/test_costs.py, which compares every row with torch's count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from llm2slm.models.matrix_shapes import Cross, Stack
from llm2slm.types import UserError


class Keys(NamedTuple):
    """The keys of a config that hold the shapes of its blocks."""

    layers: str = "num_hidden_layers"
    width: str = "hidden_size"
    heads: str = "num_attention_heads"
    feed_forward: str = "intermediate_size"


_USUAL = Keys()


@dataclass(frozen=True)
class Family:
    """How to compute the matrix shapes of a model family from a config.

    Attributes:
        keys: of the blocks; of an encoder-decoder, of its encoder.
        decoder: keys of an encoder-decoder's decoder; None: there is one stack of blocks.
        nested: encoder and decoder have separate configs, under the keys `encoder` and `decoder`.
        gated: three feed-forward matrices instead of two; `feed_forward_proj` in a config has priority.
        generates: whether models of the family generate.
        own_head: published models have a head that is not tied to the embeddings, which their config does not state.
    """

    keys: Keys = _USUAL
    decoder: Keys | None = None
    nested: bool = False
    gated: bool = False
    generates: bool = True
    own_head: bool = False


_T5 = Family(
    Keys("num_layers", "d_model", "num_heads", "d_ff"), Keys("num_decoder_layers", "d_model", "num_heads", "d_ff")
)
_BART = Family(
    Keys("encoder_layers", "d_model", "encoder_attention_heads", "encoder_ffn_dim"),
    Keys("decoder_layers", "d_model", "decoder_attention_heads", "decoder_ffn_dim"),
)
_LLAMA = Family(gated=True)

FAMILIES: dict[str, Family] = {
    "t5": _T5,
    **dict.fromkeys(("mt5", "umt5"), replace(_T5, own_head=True)),
    **dict.fromkeys(("bart", "mbart", "pegasus"), _BART),
    "t5gemma": Family(decoder=_USUAL, nested=True, gated=True),
    "t5_gemma_module": Family(gated=True, generates=False),  # T5Gemma's encoder
    "bert": Family(generates=False),
    "modernbert": Family(gated=True, generates=False),
    "gpt2": Family(Keys("n_layer", "n_embd", "n_head", "n_inner")),
    "gpt_neox": Family(),
    "opt": Family(Keys(feed_forward="ffn_dim")),
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "smollm3"), _LLAMA),
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text"), _LLAMA),
}
"""By the config's model_type."""


def supported(config: Mapping[str, Any], generates: bool = True) -> bool:
    """Whether the cost of a model can be computed: of generation, or (`generates=False`) of encoding only."""
    family = FAMILIES.get(str(config.get("model_type")))
    return family is not None and (family.generates or not generates)


def _family(config: Mapping[str, Any], generates: bool) -> Family:
    if not supported(config, generates):
        known = ", ".join(sorted(name for name in FAMILIES if supported({"model_type": name}, generates)))
        what = "generation" if generates else "encoding"
        raise UserError(f"model_type {config.get('model_type')!r}: its FLOPs of {what} are unknown; known: {known}")
    return FAMILIES[config["model_type"]]


def _stack(config: Mapping[str, Any], keys: Keys, gated: bool, layers: int | None = None) -> Stack:
    """The blocks described by these keys; `layers` of them, None: all."""
    width, heads = config[keys.width], config[keys.heads]
    head = config.get("head_dim") or config.get("d_kv") or width // heads
    kv_heads = config.get("num_key_value_heads") or heads
    gated = str(config.get("feed_forward_proj", "gated-" if gated else "")).startswith("gated-")
    outer = config.get("word_embed_proj_dim") or width
    return Stack(
        config[keys.layers] if layers is None else layers,
        width,
        heads * head,
        kv_heads * head,
        config[keys.feed_forward] or 4 * width,  # GPT-2's n_inner may be None
        3 if gated else 2,
        around=2 * outer * width if outer != width else 0,
        head=outer * config["vocab_size"],
    )


def encoder_stack(config: Mapping[str, Any], layers: int | None = None) -> Stack:
    """The blocks that encode, without a head: the encoder of an encoder-decoder, or all blocks of another model; the
    first `layers` of them, None: all."""
    family = _family(config, generates=False)
    encoder = config["encoder"] if family.nested else config
    return replace(_stack(encoder, family.keys, family.gated, layers), head=0)


def decoder_stack(config: Mapping[str, Any]) -> Stack:
    """The blocks that generate: the decoder of an encoder-decoder, or all blocks of a decoder-only model."""
    family = _family(config, generates=True)
    decoder = config["decoder"] if family.nested else config
    stack = _stack(decoder, family.decoder or family.keys, family.gated)
    attended_width = encoder_stack(config).width if is_encoder_decoder(config) else stack.width
    cross = Cross(stack.layers, stack.width, stack.inner, stack.kv, attended_width)
    return replace(stack, cross=cross if is_encoder_decoder(config) or config.get("add_cross_attention") else None)


def is_encoder_decoder(config: Mapping[str, Any]) -> bool:
    """Whether the model has an encoder and a decoder."""
    return _family(config, generates=False).decoder is not None


def embedding_width(config: Mapping[str, Any]) -> int:
    """Width of the input embeddings; of an encoder-decoder with two tables, of the encoder's."""
    family = _family(config, generates=False)
    half = config["encoder"] if family.nested else config
    return int(half.get("word_embed_proj_dim") or half[family.keys.width])


def encoder_tables(config: Mapping[str, Any]) -> int:
    """Elements of the embedding table that the encoding part of a model looks up."""
    half = config["encoder"] if _family(config, generates=False).nested else config
    return embedding_width(config) * int(half["vocab_size"])


def decoder_tables(config: Mapping[str, Any]) -> int:
    """Elements of the embedding table of the generating part, and of a language-model head that is not tied to it."""
    # transformers 5 turns tie_word_embeddings=false of a T5 (as FLAN-T5) into scale_decoder_outputs=false
    tied = config.get("tie_word_embeddings", True) and config.get("scale_decoder_outputs", True)
    own_head = not tied or _family(config, generates=True).own_head
    return decoder_stack(config).head * (2 if own_head else 1)


def whole_tables(config: Mapping[str, Any]) -> int:
    """Elements of all embedding tables of a generating model, and of a head that is not tied to one. Encoder and
    decoder share a table unless each has a config."""
    apart = _family(config, generates=True).nested
    return decoder_tables(config) + (encoder_tables(config) if apart else 0)
