"""The processor of a model: its tokenizers, and limits on lengths that its position embeddings allow."""

from __future__ import annotations

import sys
from typing import Any

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from llm2slm.config import DataConfig
from llm2slm.data.interface import LLM2SLMProcessor
from llm2slm.models.parts import Parts
from llm2slm.models.slm import greedy
from llm2slm.models.soft_prompts import taken
from llm2slm.types import Tokenizers, UserError


def default_limits(config: PreTrainedConfig) -> dict[str, Any]:
    """Limits of a model that records none: the defaults, the response at most half of the model's positions."""
    data, positions = DataConfig(), getattr(config.get_text_config(), "max_position_embeddings", None)
    response = data.max_response_tokens if positions is None else min(data.max_response_tokens, positions // 2)
    return {"max_prompt_tokens": data.max_prompt_tokens, "max_response_tokens": response}


def attach_processor(
    model: Parts,
    tokenizer: PreTrainedTokenizerBase,
    llm_tokenizer: PreTrainedTokenizerBase | None,
    *,
    own_tokens: bool = True,
) -> None:
    """Sets the model's processor, and its SLM's generation settings.

    Args:
        own_tokens: the SLM was published with this tokenizer, or with one that contains it.

    Raises:
        UserError: the response takes all positions of the SLM.
    """
    config, limits = model.config, dict(model.config.limits or {})
    limits["max_prompt_tokens"] = min(
        limits["max_prompt_tokens"], _longest_prompt(model, limits["max_response_tokens"])
    )
    eos = tokenizer.eos_token_id
    pad = eos if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    if dropped := greedy(model.slm, pad, eos, own_tokens=own_tokens):
        settings = ", ".join(f"{name}={value}" for name, value in dropped.items())
        name = model.slm.config.name_or_path or model.config.name_or_path or model.slm.config.model_type
        print(f"llm2slm: {name}: settings of its generation_config.json not used: {settings}", file=sys.stderr)
    model.processor = LLM2SLMProcessor(
        tokenizer,
        llm_tokenizer,
        llm_prompts=config.tokenizers == Tokenizers.llm_tokens.value and llm_tokenizer is not None,
        llm_frame=config.llm_frame,
        decoder_only=model.pads_left,
        **model.mode.collation(config),
        **limits,
    )


def _longest_prompt(model: Parts, response_tokens: int) -> int:
    """The longest prompt, in tokens, that SLM and LLM have positions for.

    Raises:
        UserError: the response leaves no position for a prompt.
    """
    longest = sys.maxsize
    positions = getattr(model.slm.config.get_text_config(), "max_position_embeddings", None)
    before_prompt, before_response = taken(model.slm)
    virtual = f" ({max(before_prompt, before_response)} are taken by virtual tokens)" if any(taken(model.slm)) else ""
    if positions is not None and model.pads_left:
        longest = (positions - response_tokens - before_prompt) // max(model.mode.prompt_copies, 1)
        if longest < 1:
            raise UserError(
                f"the SLM has {positions} positions for prompt and response together{virtual}, and "
                f"data.max_response_tokens={response_tokens} leaves none for the prompt; lower it"
            )
    elif positions is not None:
        if response_tokens + before_response > positions:
            raise UserError(
                f"the SLM has {positions} positions for a response{virtual}, "
                f"data.max_response_tokens={response_tokens} needs more; lower it"
            )
        if model.mode.prompt_copies:
            longest = (positions - before_prompt) // model.mode.prompt_copies
    if model.encoder is not None and model.encoder.positions is not None:
        longest = min(longest, model.encoder.positions)
    return longest
