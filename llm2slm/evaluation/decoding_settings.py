"""Decoding settings: arguments of a call, and defaults from the model's generation_config.json.

`generate` applies settings of generation_config.json that a call does not override, as `no_repeat_ngram_size` of a BART
for summaries. Those listed in `models/loading/published.py` are kept and recorded in results; all others are dropped
when the model is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llm2slm.models.loading.published import NEUTRAL, OF_BEAMS, OF_SAMPLING

if TYPE_CHECKING:
    from transformers import GenerationConfig

    from llm2slm.data.tasks import Task


def sampling(temperature: float, top_p: float) -> dict[str, Any]:
    """Arguments of `generate` for sampling. top_k=0 disables transformers' default top-k of 50."""
    return {"temperature": temperature, "top_p": top_p, "top_k": 0}


def arguments_of(task: Task, decoding: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Arguments of `generate` from a task, with `decoding` added."""
    return {"max_new_tokens": task.max_new_tokens, "num_beams": task.num_beams, **(decoding or {})}


def published_settings(config: GenerationConfig, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a model's generation config that affect a call.

    Args:
        arguments: of `generate`; they override the generation config.
    """
    beams = (arguments.get("num_beams") or getattr(config, "num_beams", None) or 1) > 1
    sampled = arguments.get("do_sample", getattr(config, "do_sample", None))
    neutral = NEUTRAL | (OF_BEAMS if beams else {}) | (OF_SAMPLING if sampled else {})
    found = {name: getattr(config, name, None) for name in neutral if name not in arguments}
    return {name: value for name, value in found.items() if value not in (None, [], {}, neutral[name])}


def effective_settings(config: GenerationConfig, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """All settings that determine how a call decodes, as plain values."""
    sampled = {"do_sample": bool(getattr(config, "do_sample", None))} | dict(arguments)
    return sampled | {name: plain(value) for name, value in published_settings(config, arguments).items()}


def plain(value: Any) -> Any:
    """A setting as a JSON value."""
    return value if isinstance(value, (bool, int, float, str, list)) else str(value)


def one_line(settings: Mapping[str, Any]) -> str:
    """Settings as text on one line."""
    return ", ".join(f"{name}={str(value).replace(' ', '')}" for name, value in settings.items())
