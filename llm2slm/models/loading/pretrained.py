"""Loading of the weights of every model of the project, through transformers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.auto_factory import _get_model_class
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AutoQuantizationConfig

from llm2slm.config import LanguageModelConfig, LLMConfig, SLMConfig
from llm2slm.config.choices import DTYPES, check_choice
from llm2slm.gguf_files.names import find, is_gguf
from llm2slm.models.encoder import FrozenEncoder
from llm2slm.models.loading.configs import locate, model_config, read_config, side_key
from llm2slm.models.loading.cross_attention import CROSS_ATTENTION, can_add_cross_attention
from llm2slm.models.loading.cut_config import KEY, chosen_blocks, sides
from llm2slm.models.loading.cutting import cut_model, partial_class, plan_cut
from llm2slm.models.loading.gguf import gguf_weights, named_with_head
from llm2slm.models.loading.partial_loading import encoder_class
from llm2slm.models.loading.reading_errors import load_errors
from llm2slm.nearest_names import nearest_hint
from llm2slm.types import Init, UserError


def load_language_model(
    cfg: LanguageModelConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    cross_attention: bool = False,
    frozen: bool = False,
) -> PreTrainedModel:
    """A model with a language-modelling head, pretrained or random.

    Args:
        cross_attention: add cross-attention layers to a decoder-only model whose architecture has them (GPT-2), with
            random weights even if the model is pretrained.
        frozen: the model is not trained, so weights of a GGUF file may stay packed.

    Raises:
        UserError: as `model_config` and `_weights`; the model has no language-modelling head or cannot be cut.
    """
    config = model_config(cfg, tokenizer)
    mapping = MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING if config.is_encoder_decoder else MODEL_FOR_CAUSAL_LM_MAPPING
    if type(config) not in mapping:
        raise UserError(f"model {cfg.source or config.model_type!r}: a {config.model_type} cannot generate text")
    kind = _get_model_class(config, mapping)
    crossed = cross_attention and can_add_cross_attention(kind, config)
    if crossed:
        config.add_cross_attention = True
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    _warn_unused(auto.from_config, cfg, config)
    layers = cfg.layers if isinstance(cfg, SLMConfig) else None
    blocks = {} if layers is None else chosen_blocks(layers, config)
    if not blocks or all(len(blocks[side.name]) == side.depth for side in sides(config)):
        return _weights(auto, cfg, config, crossed=crossed, packed=frozen, **_quantized(cfg))
    plan = plan_cut(kind, config, blocks)
    try:
        return cut_model(_weights(partial_class(plan), cfg, config, crossed=crossed, packed=frozen), plan)
    except (AttributeError, UserError) as error:
        cause = error.__cause__ if isinstance(error, UserError) else error
        if not isinstance(cause, AttributeError):  # weights initialized or changed block by block (Falcon-H1)
            raise
        raise UserError(f"{KEY}: a {config.model_type} cannot be cut: {cause}") from cause


def _warn_unused(
    build: Callable[[PreTrainedConfig], PreTrainedModel], cfg: LanguageModelConfig, config: PreTrainedConfig
) -> None:
    """Warns of pretrained tensors that a changed config leaves unused, as those of the last layers.

    Args:
        build: builds a model from a config.
    """
    name = cfg.source
    if name is None or not cfg.config or cfg.start is Init.random:
        return
    unchanged = read_config(name, cfg.revision)
    with load_errors(name), torch.device("meta"):
        before, after = (set(build(deepcopy(each)).state_dict()) for each in (unchanged, config))
    if unused := sorted(before - after):
        side, changes = side_key(cfg), ", ".join(f"{key}: {value}" for key, value in cfg.config.items())
        print(
            f"llm2slm: warning: model.{side}.config={{{changes}}} leaves {len(unused)} of the pretrained tensors of "
            f"{name} unused, as {unused[0]}",
            file=sys.stderr,
        )


def load_encoder(
    cfg: LLMConfig, tokenizer: PreTrainedTokenizerBase, kv_blocks: Sequence[int] | None = None
) -> FrozenEncoder:
    """The LLM as a frozen prompt encoder; only the blocks that it runs are built and loaded.

    Args:
        kv_blocks: return keys and values of these blocks instead of the hidden states of `cfg.layer`.
    """
    if kv_blocks is not None:
        cfg = replace(cfg, layer=max(kv_blocks))
    return FrozenEncoder(load_encoder_layers(cfg, model_config(cfg, tokenizer)), cfg.layer, kv_blocks)


def load_encoder_layers(cfg: LLMConfig, config: PreTrainedConfig, *, packed: bool = True) -> PreTrainedModel:
    """The part of an LLM that computes `cfg.layer`, as a transformers model.

    Args:
        packed: weights of a GGUF file may stay packed.
    """
    more, name = {"packed": packed} | _quantized(cfg), cfg.source
    if (
        name is not None
        and is_gguf(name)
        and cfg.start is not Init.random
        and named_with_head(find(name, cfg.revision))
    ):
        whole: PreTrainedModel = _weights(encoder_class(config, cfg.layer, head=True), cfg, config, **more).base_model
        return whole
    return _weights(encoder_class(config, cfg.layer), cfg, config, **more)


def _quantized(cfg: LanguageModelConfig) -> dict[str, Any]:
    """The quantization arguments of `from_pretrained`."""
    if not isinstance(cfg, LLMConfig) or not cfg.quantization:
        return {}
    if cfg.start is Init.random:
        raise UserError("model.llm.quantization applies to pretrained weights; model.llm.init=random has none")
    if is_gguf(cfg.source):
        raise UserError(f"model.llm.quantization: {cfg.source} is quantized already, as GGUF files are; leave it out")
    return {"quantization_config": quantization_config(cfg.quantization)}


def _weights(
    auto: Any,
    cfg: LanguageModelConfig,
    config: PreTrainedConfig,
    *,
    crossed: bool = False,
    packed: bool = False,
    **more: Any,
) -> PreTrainedModel:
    """A model with loaded or random weights.

    Args:
        auto: one of transformers' Auto classes, or a class with `from_pretrained` and `from_config`.
        crossed: the cross-attention layers may be missing from the files, either all of them or none.
        packed: weights of a GGUF file may stay packed.
        more: arguments of `from_pretrained`.

    Raises:
        UserError: the weights cannot be read, or do not cover the model, whose remaining weights would be random.
    """
    side, name = side_key(cfg), cfg.source
    check_choice(f"model.{side}.dtype", cfg.dtype, DTYPES)
    more |= {"dtype": getattr(torch, cfg.dtype)}
    if cfg.attn_implementation is not None:
        more["attn_implementation"] = cfg.attn_implementation
    model: PreTrainedModel
    if name is None or cfg.start is Init.random:
        with load_errors(name or f"model.{side}.config"):
            model = auto.from_config(config, **more)
        return model
    with load_errors(name):
        if is_gguf(name):
            model, report = gguf_weights(auto, find(name, cfg.revision), config, packed=packed, **more)
        else:
            model, report = auto.from_pretrained(
                locate(name), revision=cfg.revision, config=config,
                output_loading_info=True, ignore_mismatched_sizes=True, trust_remote_code=False, **more,
            )  # fmt: skip
    wrong = sorted(key for key, *_ in report["mismatched_keys"])
    if not wrong:
        missing = set(report["missing_keys"])
        new = {key for key in model.state_dict() if any(name in key for name in CROSS_ATTENTION)} if crossed else set()
        wrong = sorted(missing - new if new <= missing else missing)
    if wrong:
        reason = f"; model.{side}.config changes its shape: set model.{side}.init=random" if cfg.config else ""
        raise UserError(f"model {name!r}: its weights do not fit its config, as {wrong[0]}{reason}")
    return model


def quantization_config(values: Mapping[str, Any]) -> Any:
    """transformers' quantization config.

    Raises:
        UserError: the method is missing or unknown, a value is invalid, or the method's library is not installed.
    """
    method = values.get("quant_method")
    known = {name.removesuffix("_4bit").removesuffix("_8bit") for name in AUTO_QUANTIZATION_CONFIG_MAPPING}
    if method not in known:
        raise UserError(
            f"model.llm.quantization.quant_method={method} is unknown{nearest_hint(str(method), known)}; possible: "
            + ", ".join(sorted(known))
        )
    try:
        return AutoQuantizationConfig.from_dict(dict(values))
    except (TypeError, ValueError, ImportError) as error:
        raise UserError(f"model.llm.quantization: {method}: {str(error).splitlines()[0]}") from None
