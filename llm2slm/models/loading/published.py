"""Filter of a pretrained model's decoding settings (generation_config.json).

transformers' `generate` applies every field of that file that a call does not set. Some fields (several sequences per
prompt, output objects instead of ids, other decoding algorithms or caches) break the contract of one text per prompt,
or need prompt token ids, which a model with embedding inputs does not get. Only the fields listed here are kept; the
others are dropped and reported. Arguments of a `generate` call are not filtered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import GenerationConfig

NEUTRAL: dict[str, Any] = {
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "min_length": 0,
    "min_new_tokens": 0,
    "exponential_decay_length_penalty": None,
    "bad_words_ids": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "sequence_bias": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "watermarking_config": None,
}
"""Kept settings that change the output, each with its neutral value."""
OF_TOKENS = (
    "bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "sequence_bias", "forced_bos_token_id",
    "forced_eos_token_id",
)  # fmt: skip
"""The settings of `NEUTRAL` that consist of token ids."""
FORCED_END = "forced_eos_token_id"
OF_BEAMS: dict[str, Any] = {"length_penalty": 1.0, "early_stopping": False}
"""Kept settings of beam search, with neutral values."""
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
"""Kept settings of sampling, with neutral values."""
OTHERS = (
    "num_beams", "max_length", "max_new_tokens", "renormalize_logits", "remove_invalid_values", "pad_token_id",
    "eos_token_id", "bos_token_id", "decoder_start_token_id",
)  # fmt: skip
"""Also kept: number of beams, lengths and special tokens."""
GREEDY = ("do_sample", "temperature", "top_k", "top_p")
"""Dropped: decoding is greedy by default, and a call must request sampling."""
DROPPED = (
    # several sequences, or outputs other than ids
    "num_return_sequences", "return_dict_in_generate", "output_scores", "output_logits", "output_attentions",
    "output_hidden_states",
    # other algorithms and their settings
    "penalty_alpha", "dola_layers", "low_memory", "num_beam_groups", "diversity_penalty", "constraints",
    "force_words_ids", "guidance_scale", "prompt_lookup_num_tokens", "max_matching_ngram_size", "speculation_type",
    "use_mtp", "is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule",
    "assistant_confidence_threshold", "assistant_early_exit", "assistant_ensemble_weight", "assistant_lookbehind",
    "target_lookbehind",
    # settings that need the prompt's token ids
    "encoder_repetition_penalty", "encoder_no_repeat_ngram_size", "token_healing",
    # stopping criteria other than eos; max_time makes the output depend on the machine
    "stop_strings", "max_time",
    # computation
    "use_cache", "cache_implementation", "cache_config", "max_cache_len", "compile_config", "disable_compile",
    "prefill_chunk_size", "continuous_batching_config",
)  # fmt: skip
"""Dropped fields known to transformers. A field in no list is dropped as well."""
IDLE: dict[str, Any] = {
    "num_return_sequences": 1,
    "num_beam_groups": 1,
    "guidance_scale": 1.0,
    "encoder_repetition_penalty": 1.0,
    "temperature": 1.0,
    "top_p": 1.0,
    "use_cache": True,
}
"""Neutral values of dropped fields other than 0, False and empty values; a neutral field is dropped silently."""
KEPT = frozenset((*NEUTRAL, *OF_BEAMS, *OF_SAMPLING, *OTHERS)) - frozenset(GREEDY)


def drop_unsupported(config: GenerationConfig, vocabulary: int) -> dict[str, Any]:
    """Removes the fields outside of `KEPT` from a generation config, in place.

    Also removes entries with token ids outside of the vocabulary, on which `generate` fails.

    Args:
        vocabulary: number of output tokens of the model.

    Returns:
        The removed fields with non-neutral values, and the removed entries, by field.
    """
    fields = {name: value for name, value in vars(config).items() if not name.startswith("_")}
    found = {name: value for name, value in fields.items() if name not in KEPT and name != "transformers_version"}
    for name in found:
        setattr(config, name, None)
    dropped = {name: value for name, value in found.items() if not _idle(name, value)}
    return dropped | drop_token_ids(config, lambda _, ids: all(0 <= token < vocabulary for token in ids))


def drop_token_ids(config: GenerationConfig, keep: Callable[[str, list[int]], bool]) -> dict[str, Any]:
    """Removes entries from the fields that consist of token ids, in place.

    Args:
        keep: (field, ids of an entry) -> whether the entry stays.

    Returns:
        The removed entries, by field.
    """
    dropped: dict[str, Any] = {}
    for name in OF_TOKENS:
        value = getattr(config, name, None)
        if value is None or value in ([], {}):
            continue
        entries = list(value.items()) if isinstance(value, dict) else value if isinstance(value, list) else [value]
        stay = [entry for entry in entries if keep(name, _ids(entry))]
        if len(stay) == len(entries):
            continue
        out = [entry for entry in entries if entry not in stay]
        dropped[name] = out if isinstance(value, list | dict) else value
        setattr(config, name, None if not stay else dict(stay) if isinstance(value, dict) else stay)
    return dropped


def _ids(entry: Any) -> list[int]:
    """The token ids of an entry: an id, a list of ids, or a pair of a list and its bias; -1 for other values."""
    inner = entry if isinstance(entry, list | tuple) else [entry]
    inner = inner[0] if inner and isinstance(inner[0], list | tuple) else inner
    return [token if isinstance(token, int) else -1 for token in inner] or [-1]


def _idle(name: str, value: Any) -> bool:
    if name == "use_cache":
        return value is not False
    return not value or value == IDLE.get(name)
