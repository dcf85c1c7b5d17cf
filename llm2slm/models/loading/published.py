"""What stays in force of the decoding settings that a model was published with, in its generation_config.json.

transformers' `generate` obeys every field of that file whenever a call does not name it. Some of them (several answers
for one prompt, an output object in place of ids, another decoding algorithm, another cache) break whoever asked for one
text per prompt, or need inputs that a model which reads vectors has not. So a field stays in force only if it is listed
here; all others are dropped, and named. What a caller hands to `generate` is not touched.
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
"""Settings that change what is written, and the value at which each does nothing."""
OF_TOKENS = (
    "bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "sequence_bias", "forced_bos_token_id",
    "forced_eos_token_id",
)  # fmt: skip
"""Those of them that are made of token ids."""
FORCED_END = "forced_eos_token_id"
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
OTHERS = (
    "num_beams", "max_length", "max_new_tokens", "renormalize_logits", "remove_invalid_values", "pad_token_id",
    "eos_token_id", "bos_token_id", "decoder_start_token_id",
)  # fmt: skip
"""Also kept: how many beams, how long, and special tokens."""
GREEDY = ("do_sample", "temperature", "top_k", "top_p")
"""Dropped, though a call may sample: answers are greedy unless somebody asks for others."""
DROPPED = (
    # several answers, or no ids
    "num_return_sequences", "return_dict_in_generate", "output_scores", "output_logits", "output_attentions",
    "output_hidden_states",
    # other algorithms, and what belongs to them
    "penalty_alpha", "dola_layers", "low_memory", "num_beam_groups", "diversity_penalty", "constraints",
    "force_words_ids", "guidance_scale", "prompt_lookup_num_tokens", "max_matching_ngram_size", "speculation_type",
    "use_mtp", "is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule",
    "assistant_confidence_threshold", "assistant_early_exit", "assistant_ensemble_weight", "assistant_lookbehind",
    "target_lookbehind",
    # what needs the token ids of the prompt
    "encoder_repetition_penalty", "encoder_no_repeat_ngram_size", "token_healing",
    # other ends than the eos; max_time makes an answer depend on the machine
    "stop_strings", "max_time",
    # how it is computed
    "use_cache", "cache_implementation", "cache_config", "max_cache_len", "compile_config", "disable_compile",
    "prefill_chunk_size", "continuous_batching_config",
)  # fmt: skip
"""Known to transformers and dropped. A field that is in no list here is dropped as well."""
IDLE: dict[str, Any] = {
    "num_return_sequences": 1,
    "num_beam_groups": 1,
    "guidance_scale": 1.0,
    "encoder_repetition_penalty": 1.0,
    "temperature": 1.0,
    "top_p": 1.0,
    "use_cache": True,
}
"""Values of dropped fields that change nothing, beside 0, False and nothing at all: it need not be said."""
KEPT = frozenset((*NEUTRAL, *OF_BEAMS, *OF_SAMPLING, *OTHERS)) - frozenset(GREEDY)


def drop_others(config: GenerationConfig, vocabulary: int) -> dict[str, Any]:
    """Takes every field out of a model's own generation config, in place, that is not to stay in force.

    Of a field made of token ids, entries with an id outside the vocabulary are taken out: `generate` fails on them.

    Args:
        vocabulary: the number of tokens that the model can write.

    Returns:
        The fields whose values would have changed something, and the entries that were taken out.
    """
    fields = {name: value for name, value in vars(config).items() if not name.startswith("_")}
    found = {name: value for name, value in fields.items() if name not in KEPT and name != "transformers_version"}
    for name in found:
        setattr(config, name, None)
    dropped = {name: value for name, value in found.items() if not _idle(name, value)}
    return dropped | drop_token_ids(config, lambda _, ids: all(0 <= token < vocabulary for token in ids))


def drop_token_ids(config: GenerationConfig, keep: Callable[[str, list[int]], bool]) -> dict[str, Any]:
    """Takes entries out of the fields made of token ids, in place.

    Args:
        keep: whether an entry of a field with these ids stays.

    Returns:
        The entries that were taken out, by field.
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
    """The token ids of an entry: one id, a list of them, or a pair of such a list and its bias; -1 for what is none."""
    inner = entry if isinstance(entry, list | tuple) else [entry]
    inner = inner[0] if inner and isinstance(inner[0], list | tuple) else inner
    return [token if isinstance(token, int) else -1 for token in inner] or [-1]


def _idle(name: str, value: Any) -> bool:
    if name == "use_cache":
        return value is not False
    return not value or value == IDLE.get(name)
