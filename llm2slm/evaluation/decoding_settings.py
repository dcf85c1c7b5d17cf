"""How answers are decoded: what was asked for, and what a model was published with beside it.

A model's generation_config.json may hold settings that `generate` obeys where a call does not name them, such as
`no_repeat_ngram_size` of a BART for summaries. Those of `models/loading/published.py` stay in force, and a result
that was written under them records them; all others were dropped when the model was loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llm2slm.models.loading.published import NEUTRAL, OF_BEAMS, OF_SAMPLING

if TYPE_CHECKING:
    from transformers import GenerationConfig

    from llm2slm.data.tasks import Task


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
