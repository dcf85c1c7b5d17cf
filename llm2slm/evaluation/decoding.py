"""How answers are decoded: what was asked for, and what a model was published with beside it.

A model's generation_config.json may hold settings that `generate` obeys whenever nobody says otherwise, such as
`no_repeat_ngram_size` of a BART for summaries. They are left in force, as everybody's who loads that model; a result
that was written under them says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import GenerationConfig

    from llm2slm.data.tasks import Task

NEUTRAL: dict[str, Any] = {
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "min_length": 0,
    "min_new_tokens": 0,
    "exponential_decay_length_penalty": None,
    "bad_words_ids": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "sequence_bias": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "guidance_scale": 1.0,
    "watermarking_config": None,
    "stop_strings": None,
    "max_time": None,
}
"""Settings of transformers' `generate` that change what is written, and the value at which each does nothing."""
OF_BEAMS: dict[str, Any] = {"length_penalty": 1.0, "early_stopping": False}
"""The same of beam search."""
OF_SAMPLING: dict[str, Any] = {
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "top_h": None,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
}
"""The same of sampling."""


def sampling(temperature: float, top_p: float) -> dict[str, Any]:
    """Arguments of `generate` that sample as they say, and not as transformers would: it leaves out all but the 50
    likeliest tokens where nobody says how many."""
    return {"temperature": temperature, "top_p": top_p, "top_k": 0}


def asked(task: Task, decoding: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Arguments of `generate` by a task, and more of them."""
    return {"max_new_tokens": task.max_new_tokens, "num_beams": task.num_beams, **(decoding or {})}


def own_settings(config: GenerationConfig, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What a model's generation config has in force beside the arguments of a call.

    Args:
        arguments: of `generate`; what they name is theirs.
    """
    beams = (arguments.get("num_beams") or getattr(config, "num_beams", None) or 1) > 1
    sampled = arguments.get("do_sample", getattr(config, "do_sample", None))
    neutral = NEUTRAL | (OF_BEAMS if beams else {}) | (OF_SAMPLING if sampled else {})
    found = {name: getattr(config, name, None) for name in neutral if name not in arguments}
    return {name: value for name, value in found.items() if value not in (None, [], {}, neutral[name])}


def in_force(config: GenerationConfig, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """All that decides how a call decodes, as plain values."""
    sampled = {"do_sample": bool(getattr(config, "do_sample", None))} | dict(arguments)
    return sampled | {name: plain(value) for name, value in own_settings(config, arguments).items()}


def plain(value: Any) -> Any:
    """A setting as JSON holds it."""
    return value if isinstance(value, (bool, int, float, str, list)) else str(value)


def in_words(settings: Mapping[str, Any]) -> str:
    """Settings in a line."""
    return ", ".join(f"{name}={str(value).replace(' ', '')}" for name, value in settings.items())
